// What a convolution kernel is compiled for: the tile of a block, and how its shared memory is laid out.
#pragma once
#include "norm.cuh"

namespace fused_preact::cuda {

// Rows of channels in shared memory. Any 8 consecutive rows have the same chunk in 8 different groups of banks, so that ldmatrix and
// 16-byte accesses meet no conflict: chunks change places within a row, by the row.
template <class T, int CHANNELS>
struct Swizzled {
    static constexpr int CHUNKS = CHANNELS / PER_CHUNK<T>, BYTES = CHANNELS * sizeof(T);
    static constexpr int ROWS_APART = CHUNKS < 8 ? 8 / CHUNKS : 1, PLACES = CHUNKS < 8 ? CHUNKS : 8;
    static_assert((CHUNKS & (CHUNKS - 1)) == 0);

    // Offset in bytes. Rows that differ by a multiple of 8 differ by that many BYTES.
    static __device__ int at(int row, int chunk) { return row * BYTES + ((chunk ^ place(row / ROWS_APART % PLACES)) << 4); }

  private:
    // Accumulators are stored 4 rows at a time; of float32 they have two chunks of each, which must not change places with one another.
    static __device__ int place(int row) { return sizeof(T) == 2 || PLACES < 4 ? row : row % (PLACES / 2) * 2 + row / (PLACES / 2); }
};

// The same, by chunks of padding up to an odd number: a shift of rows, as a tap is one, is a constant. It takes more memory.
template <class T, int CHANNELS, int PADDING = CHANNELS / PER_CHUNK<T> % 2 ? 0 : 1>
struct Padded {
    static constexpr int CHUNKS = CHANNELS / PER_CHUNK<T>, BYTES = (CHUNKS + PADDING) * 16;

    static __device__ int at(int row, int chunk) { return row * BYTES + chunk * 16; }
};

// Where rows are what is summed over: Halves, of 16 bits. ldmatrix can't transpose float32: lanes load words of 4 rows x 8 columns, which two
// chunks of padding put into 32 banks.
template <class T, int CHANNELS, class Halves = Padded<T, CHANNELS>>
using SummedRows = std::conditional_t<sizeof(T) == 2, Halves, Padded<T, CHANNELS, 2>>;

// Bytes from the rows of a weight under one tap to those under the next. In memory the next tap follows where a row ends: where rows are shorter than
// 128 bytes, those of neighbouring taps are stored at once, so that they must begin at different banks.
template <class Layout>
constexpr int tap_bytes(int rows) {
    constexpr int ROW = Layout::CHUNKS * 16;
    return ROW >= 128 ? rows * Layout::BYTES : (rows * Layout::BYTES + 127 - ROW) / 128 * 128 + ROW;
}

// A block computes HEIGHT x WIDTH pixels x OUT channels, from SLAB channels to be summed over at a time; MANY: there are more of them, and two
// slabs in memory take turns. A warp has ROWS tiles of 16 pixels, COLUMNS of 8 channels.
template <class T, int HEIGHT_, int WIDTH_, int SLAB_, int OUT_, bool MANY_, int WARPS_DOWN, int WARPS_ACROSS, int RESIDENT_>
struct BlockShape {
    static constexpr int HEIGHT = HEIGHT_, WIDTH = WIDTH_, PIXELS = HEIGHT * WIDTH, SLAB = SLAB_, OUT = OUT_, ACROSS = WARPS_ACROSS, RESIDENT = RESIDENT_;
    static constexpr bool MANY = MANY_, FLAT = HEIGHT == 1;
    static constexpr int WARPS = WARPS_DOWN * WARPS_ACROSS, THREADS = 32 * WARPS, BUFFERS = MANY ? 2 : 1;
    static constexpr int ROWS = PIXELS / (16 * WARPS_DOWN), COLUMNS = OUT / (8 * WARPS_ACROSS);
    // Of y, or what is like it.
    using Out = Swizzled<T, OUT>;
    static constexpr int OUT_BYTES = PIXELS * Out::BYTES;
    // Warps that share the pixels of 16 output channels when sums are taken; each has so many of these groups.
    static constexpr int GROUPS = OUT / 16, WIDE = GROUPS < WARPS ? GROUPS : WARPS, SHARES = WARPS / WIDE, OWN_GROUPS = GROUPS / WIDE;
    static constexpr int SUMS_BYTES = WARPS * 2 * OUT * 4;
    static_assert(PIXELS % (16 * WARPS_DOWN) == 0 && OUT % (16 * WARPS_ACROSS) == 0 && SLAB % (2 * PER_CHUNK<T>) == 0 && THREADS >= OUT);
    static_assert(PIXELS % (16 * SHARES) == 0 && GROUPS % WIDE == 0);
    static_assert(PIXELS * Out::CHUNKS % THREADS == 0);
    // A thread's chunks of the output are whole rows of the tile apart.
    static_assert(FLAT || THREADS / Out::CHUNKS % WIDTH == 0);
};

// Of a pointwise convolution, whose pixels are a list. Shared memory: slabs of z and of the weight, y (before that the residual), what each warp
// sums, and vectors of the norm.
template <class T, int PIXELS_, int SLAB_, int OUT_, bool MANY_, int WARPS_DOWN, int WARPS_ACROSS, int RESIDENT_>
struct FlatShape : BlockShape<T, 1, PIXELS_, SLAB_, OUT_, MANY_, WARPS_DOWN, WARPS_ACROSS, RESIDENT_> {
    using Base = BlockShape<T, 1, PIXELS_, SLAB_, OUT_, MANY_, WARPS_DOWN, WARPS_ACROSS, RESIDENT_>;
    using In = Swizzled<T, SLAB_>;
    static_assert(PIXELS_ * In::CHUNKS % Base::THREADS == 0);
    static constexpr int IN_BYTES = PIXELS_ * In::BYTES, WEIGHT_BYTES = OUT_ * In::BYTES;
    static constexpr int WEIGHTS_AT = Base::BUFFERS * IN_BYTES, OUT_AT = WEIGHTS_AT + Base::BUFFERS * WEIGHT_BYTES;
    static constexpr int SUMS_AT = OUT_AT + Base::OUT_BYTES, VECTORS_AT = SUMS_AT + Base::SUMS_BYTES;

    static constexpr int bytes(int channels) { return VECTORS_AT + (channels + SLAB_ - 1) / SLAB_ * SLAB_ * 4 * Norm<T, 1>::VECTORS; }
};

// Of a convolution that reads a window of pixels. Shared memory: y, what each warp sums, slabs of the weight, all its taps, and a slab of the window.
template <class T, int HEIGHT_, int WIDTH_, int SLAB_, int OUT_, bool MANY_, int WARPS_DOWN, int WARPS_ACROSS, int RESIDENT_>
struct WindowShape : BlockShape<T, HEIGHT_, WIDTH_, SLAB_, OUT_, MANY_, WARPS_DOWN, WARPS_ACROSS, RESIDENT_> {
    using Base = BlockShape<T, HEIGHT_, WIDTH_, SLAB_, OUT_, MANY_, WARPS_DOWN, WARPS_ACROSS, RESIDENT_>;
    using In = Padded<T, SLAB_>;
    // Of a tap: a row for each output channel.
    using Weight = Padded<T, SLAB_>;
    static constexpr int TAP_BYTES = tap_bytes<Weight>(OUT_), SUMS_AT = Base::OUT_BYTES, WEIGHTS_AT = SUMS_AT + Base::SUMS_BYTES;

    static constexpr int window_at(int taps) { return WEIGHTS_AT + Base::BUFFERS * taps * TAP_BYTES; }
    static constexpr int bytes(int taps, int window_pixels) { return window_at(taps) + window_pixels * In::BYTES; }
};

// Of the gradient of a pointwise convolution's input; channels are summed over that dy has. Shared memory: dz, x, z, slabs of the weight and of dy.
template <class T, int PIXELS_, int SLAB_, int OUT_, bool MANY_, int WARPS_DOWN, int WARPS_ACROSS, int RESIDENT_>
struct FlatGradShape : BlockShape<T, 1, PIXELS_, SLAB_, OUT_, MANY_, WARPS_DOWN, WARPS_ACROSS, RESIDENT_> {
    using Base = BlockShape<T, 1, PIXELS_, SLAB_, OUT_, MANY_, WARPS_DOWN, WARPS_ACROSS, RESIDENT_>;
    using In = Swizzled<T, SLAB_>;
    // A row for each channel of dy.
    using Weight = SummedRows<T, OUT_>;
    static_assert(PIXELS_ * In::CHUNKS % Base::THREADS == 0 && Base::SUMS_BYTES <= 2 * Base::OUT_BYTES);
    static constexpr int IN_BYTES = PIXELS_ * In::BYTES, TAP_BYTES = SLAB_ * Weight::BYTES;
    static constexpr int X_AT = Base::OUT_BYTES, Z_AT = 2 * Base::OUT_BYTES;

    // z is there if dweight is wanted too.
    static constexpr int weights_at(bool z) { return z ? 3 * Base::OUT_BYTES : Z_AT; }
    static constexpr int bytes(bool z) { return weights_at(z) + Base::BUFFERS * (TAP_BYTES + IN_BYTES); }
};

// Of the gradient of an input that is read by windows. Shared memory: dz, x, z, slabs of the weight, all its taps, and a slab of the window of dy.
template <class T, int HEIGHT_, int WIDTH_, int SLAB_, int OUT_, bool MANY_, int WARPS_DOWN, int WARPS_ACROSS, int RESIDENT_>
struct WindowGradShape : BlockShape<T, HEIGHT_, WIDTH_, SLAB_, OUT_, MANY_, WARPS_DOWN, WARPS_ACROSS, RESIDENT_> {
    using Base = BlockShape<T, HEIGHT_, WIDTH_, SLAB_, OUT_, MANY_, WARPS_DOWN, WARPS_ACROSS, RESIDENT_>;
    using In = Padded<T, SLAB_>;
    using Weight = SummedRows<T, OUT_>;
    static_assert(Base::SUMS_BYTES <= 2 * Base::OUT_BYTES);
    static constexpr int TAP_BYTES = tap_bytes<Weight>(SLAB_), X_AT = Base::OUT_BYTES, Z_AT = 2 * Base::OUT_BYTES;

    // z is there if dweight is wanted too.
    static constexpr int weights_at(bool z) { return z ? 3 * Base::OUT_BYTES : Z_AT; }
    static constexpr int window_at(bool z, int taps) { return weights_at(z) + Base::BUFFERS * taps * TAP_BYTES; }
    static constexpr int bytes(bool z, int taps, int window_pixels) { return window_at(z, taps) + window_pixels * In::BYTES; }
};

// Where a thread stands in a tile of rows of CHUNKS chunks: it has one column of chunks and every STEP-th row.
template <int THREADS, int ROWS, int CHUNKS>
struct Walk {
    static constexpr int STEP = THREADS / CHUNKS, COUNT = (ROWS + STEP - 1) / STEP;
    static_assert(THREADS % CHUNKS == 0 && STEP % 8 == 0);
    int chunk, row;

    __device__ Walk() : chunk(threadIdx.x % CHUNKS), row(threadIdx.x / CHUNKS) {}
};

// The pixels of a tile that its outputs have, and where these lie in memory.
template <class S>
struct Outputs {
    int64_t first;                // offset of the tile's first pixel
    int row_pitch, column_pitch;  // in elements
    int rows, columns;            // that exist, HEIGHT x WIDTH at most

    __device__ bool all() const { return S::FLAT ? columns == S::WIDTH : rows == S::HEIGHT && columns == S::WIDTH; }
    __device__ bool has(int pixel) const { return S::FLAT ? pixel < columns : pixel / S::WIDTH < rows && pixel % S::WIDTH < columns; }
    __device__ int count() const { return S::FLAT ? columns : rows * columns; }

    // The thread's first chunk, and the distance of its chunks.
    template <class Thread>
    __device__ int64_t at(const Thread& thread, int channel) const {
        if constexpr (S::FLAT) return first + int64_t(thread.row) * column_pitch + channel;
        return first + int64_t(thread.row / S::WIDTH) * row_pitch + thread.row % S::WIDTH * column_pitch + channel;
    }
    template <class Thread>
    __device__ int step() const {
        return S::FLAT ? Thread::STEP * column_pitch : Thread::STEP / S::WIDTH * row_pitch;
    }
};

// Of a list of `pixels`.
template <class S>
__device__ inline Outputs<S> outputs_of(int64_t tile, int64_t pixels, int channels) {
    return {tile * S::PIXELS * channels, 0, channels, 1, int(min(pixels - tile * S::PIXELS, int64_t(S::PIXELS)))};
}

}  // namespace fused_preact::cuda
