// The window of a tile on the device: where its pixels lie in shared memory, how they get there, and the product with all taps.
#pragma once
#include "fragments.cuh"
#include "window.h"

namespace fused_preact::cuda {

// An image of the source, dense NHWC.
template <class T>
struct Image {
    const T* pixels;
    int height, width, channels;
};

// 3x3 taps, stride and dilation 1: all is known but where the window begins. TRANSPOSED: the weight's taps are in reverse.
template <class S, bool TRANSPOSED>
struct Window3x3 {
    static constexpr int HEIGHT = S::HEIGHT + 2, WIDTH = S::WIDTH + 2, TAPS = 9;
    // Threads have a pixel's chunk in AT_ONCE rows of the window, and then in the next.
    static constexpr int ACROSS = WIDTH * S::In::CHUNKS, AT_ONCE = S::THREADS / ACROSS, COUNT = (HEIGHT + AT_ONCE - 1) / AT_ONCE;
    static_assert(AT_ONCE > 0);
    // Loads that are on their way at once; between slabs there are accumulators in registers too.
    static constexpr int TOGETHER = S::MANY ? 2 : COUNT;
    const Window& w;

    __device__ int taps() const { return TAPS; }
    __device__ int pixels() const { return HEIGHT * WIDTH; }
    __device__ int phases() const { return 1; }
    __device__ int phase_y(int) const { return 0; }
    __device__ int phase_x(int) const { return 0; }
    // Bytes from a tile's pixel to so many further on, which are whole rows.
    template <int PIXELS>
    __device__ int next_rows() const {
        static_assert(PIXELS % S::WIDTH == 0);
        return PIXELS / S::WIDTH * WIDTH * S::In::BYTES;
    }
    __device__ int row_of(int pixel) const { return pixel / S::WIDTH * WIDTH + pixel % S::WIDTH; }

    // body(offset of a tap in the window, which tap of the weight)
    template <class Body>
    __device__ void each_tap(int, Body&& body) const {
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) body(offset_of(tap), weight_of(tap));
    }
    static __device__ int offset_of(int tap) { return (tap / 3 * WIDTH + tap % 3) * S::In::BYTES; }
    static __device__ int weight_of(int tap) { return TRANSPOSED ? TAPS - 1 - tap : tap; }

    // The thread's chunks of a window that begins at pixel y, x of the image: read(address) for those inside, and then
    // store(row of the window, raw, whether it is inside) for all.
    template <class T, class Read, class Store>
    __device__ void fill(const Image<T>& image, int y, int x, Read&& read, Store&& store) const {
        const int place = threadIdx.x / S::In::CHUNKS, column = place % WIDTH, row = place / WIDTH;
        if (row >= AT_ONCE) return;
        const bool across = unsigned(x + column) < unsigned(image.width);
        const int step = AT_ONCE * image.width * image.channels;
        const T* from = image.pixels + (int64_t(y + row) * image.width + x + column) * image.channels;
        auto inside = [&](int i) { return across && unsigned(y + row + i * AT_ONCE) < unsigned(image.height) && row + i * AT_ONCE < HEIGHT; };
#pragma unroll
        for (int group = 0; group < COUNT; group += TOGETHER) {
            // Defined in any case: else registers keep it from tile to tile.
            decltype(read(from)) raw[TOGETHER]{};
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i)
                if (inside(group + i)) raw[i] = read(from + int64_t(group + i) * step);
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i)
                if (row + (group + i) * AT_ONCE < HEIGHT) store((row + (group + i) * AT_ONCE) * WIDTH + column, raw[i], inside(group + i));
        }
    }

    // The same in two steps, with something else between them. One after the other they would need more registers than `fill`.
    template <class T, class Raw>
    struct Chunks {
        Raw raw[COUNT];
        int first, height;  // of the image: the thread's first row, and how many there are

        template <class Read>
        __device__ void start(const Window3x3&, const Image<T>& image, int y, int x, Read&& read) {
            const int column = column_of_thread(), row = row_of_thread();
            const int step = AT_ONCE * image.width * image.channels;
            const T* from = image.pixels + int64_t((y + row) * image.width + x + column) * image.channels;
            first = y + row, height = unsigned(x + column) < unsigned(image.width) ? image.height : 0;
            if (row >= AT_ONCE) return;
#pragma unroll
            for (int i = 0; i < COUNT; ++i, from += step)
                if (inside(row, i)) raw[i] = read(from);
        }
        template <class Read, class Store>
        __device__ void finish(const Window3x3&, Read&&, Store&& store) const {
            const int column = column_of_thread(), row = row_of_thread();
            if (row >= AT_ONCE) return;
#pragma unroll
            for (int i = 0; i < COUNT; ++i)
                if (has(row, i)) store((row + i * AT_ONCE) * WIDTH + column, raw[i], inside(row, i));
        }

      private:
        __device__ bool inside(int row, int i) const { return unsigned(first + i * AT_ONCE) < unsigned(height) && has(row, i); }
    };
    static __device__ int column_of_thread() { return threadIdx.x / S::In::CHUNKS % WIDTH; }
    static __device__ int row_of_thread() { return threadIdx.x / S::In::CHUNKS / WIDTH; }
    // Whether the i-th row of a thread, which has one of the first AT_ONCE, is in the window.
    static __device__ bool has(int row, int i) { return (i + 1) * AT_ONCE <= HEIGHT || row + i * AT_ONCE < HEIGHT; }
};

// Any taps, stride and dilation.
template <class S>
struct AnyWindow {
    const Window& w;

    __device__ int taps() const {
        const Window::Phase& last = w.phase[w.phases - 1];
        return last.first + last.taps;
    }
    __device__ int pixels() const { return w.y.extent * w.x.extent; }
    __device__ int phases() const { return w.phases; }
    __device__ int phase_y(int phase) const { return w.phase[phase].y; }
    __device__ int phase_x(int phase) const { return w.phase[phase].x; }
    template <int PIXELS>
    __device__ int next_rows() const {
        static_assert(PIXELS % S::WIDTH == 0);
        return PIXELS / S::WIDTH * w.y.step * w.x.extent * S::In::BYTES;
    }
    __device__ int row_of(int pixel) const { return pixel / S::WIDTH * w.y.step * w.x.extent + pixel % S::WIDTH; }

    // Columns that neighbouring outputs read are neighbours: sorted by their phase modulo the step. The first E % step phases have one more.
    __device__ int column_of(int x) const {
        const int phase = x % w.x.step;
        return phase * (w.x.extent / w.x.step) + min(phase, w.x.extent % w.x.step) + x / w.x.step;
    }

    template <class Body>
    __device__ void each_tap(int phase, Body&& body) const {
        const Window::Phase& own = w.phase[phase];
        for (int i = own.first; i < own.first + own.taps; ++i) body(offset_of(i), w.taps[i].weight);
    }
    __device__ int offset_of(int tap) const { return (w.taps[tap].y * w.x.extent + column_of(w.taps[tap].x)) * S::In::BYTES; }

    template <class T, class Read, class Store>
    __device__ void fill(const Image<T>& image, int y, int x, Read&& read, Store&& store) const {
        const int all = w.y.extent * w.x.extent;
        for (int i = threadIdx.x / S::In::CHUNKS; i < all; i += S::THREADS / S::In::CHUNKS) {
            const int row = i / w.x.extent, column = i - row * w.x.extent, iy = y + row * w.y.sample, ix = x + column * w.x.sample;
            const bool inside = unsigned(iy) < unsigned(image.height) && unsigned(ix) < unsigned(image.width);
            const T* const from = image.pixels + (int64_t(iy) * image.width + ix) * image.channels;
            const int to = row * w.x.extent + column_of(column);
            if (inside)
                store(to, read(from), true);
            else
                store(to, {}, false);
        }
    }

    // As of Window3x3; there may be any number of them, so that they are read when they are stored.
    template <class T, class Raw>
    struct Chunks {
        Image<T> image;
        int y, x;

        template <class Read>
        __device__ void start(const AnyWindow&, const Image<T>& own, int first_y, int first_x, Read&&) {
            image = own, y = first_y, x = first_x;
        }
        template <class Read, class Store>
        __device__ void finish(const AnyWindow& geometry, Read&& read, Store&& store) const {
            geometry.fill(image, y, x, read, store);
        }
    };
};

// Which image and outputs a tile has.
struct TileAt {
    int image, y, x;  // of its first output, in pixels of a phase

    // How many tiles of a size cover so many pixels.
    static __device__ int along(unsigned pixels, unsigned size) { return (pixels + size - 1) / size; }

    template <class S>
    static __device__ TileAt of(int tile, int height, int width) {
        const int across = along(width, S::WIDTH), down = along(height, S::HEIGHT), row = tile / across;
        return {row / down, row % down * S::HEIGHT, (tile - row * across) * S::WIDTH};
    }
};

// Of a tile of an input's gradient: its pixels of one phase, dense NHWC. There may be none.
template <class S, class G>
__device__ inline Outputs<S> phase_outputs(const G& geometry, int phase, const TileAt& at, const Conv& conv) {
    const int y = at.y * conv.y.stride + geometry.phase_y(phase), x = at.x * conv.x.stride + geometry.phase_x(phase);
    auto left = [](int size, int from, int stride, int most) { return min((size - from + stride - 1) / stride, most); };
    return {((int64_t(at.image) * conv.y.in + y) * conv.x.in + x) * conv.c, conv.y.stride * conv.x.in * conv.c, conv.x.stride * conv.c,
            left(conv.y.in, y, conv.y.stride, S::HEIGHT), left(conv.x.in, x, conv.x.stride, S::WIDTH)};
}

// A chunk of a slab of z from what was read, or zero: padding is of z.
template <class T, class S, class G, class Source>
__device__ inline void fill_window(char* window, const G& geometry, const Image<T>& image, const TileAt& at, const Source& source) {
    const Window& w = geometry.w;
    const int chunk = threadIdx.x % S::In::CHUNKS;
    char* const to = window + chunk * 16;
    geometry.fill(
        image, w.y.origin + at.y * w.y.advance, w.x.origin + at.x * w.x.advance, [&](const T* from) { return source.read(from); },
        [&](int row, const typename Source::Raw& raw, bool inside) {
            *reinterpret_cast<uint4*>(to + row * S::In::BYTES) = inside ? source.chunk(raw) : uint4{};
        });
}

// The same in two steps: loads on their way into registers, and what becomes of them in shared memory. Both may have sources of their own, if these
// read the same.
template <class T, class S, class G, class Raw>
struct WindowLoader {
    typename G::template Chunks<T, Raw> chunks;

    template <class Source>
    __device__ void start(const G& geometry, const Image<T>& image, const TileAt& at, const Source& source) {
        const Window& w = geometry.w;
        chunks.start(geometry, image, w.y.origin + at.y * w.y.advance, w.x.origin + at.x * w.x.advance, [&](const T* from) { return source.read(from); });
    }
    template <class Source>
    __device__ void finish(char* window, const G& geometry, const Source& source) const {
        char* const to = window + threadIdx.x % S::In::CHUNKS * 16;
        chunks.finish(
            geometry, [&](const T* from) { return source.read(from); },
            [&](int row, const Raw& raw, bool inside) { *reinterpret_cast<uint4*>(to + row * S::In::BYTES) = inside ? source.chunk(raw) : uint4{}; });
    }
};

// sums += all taps of a phase: rows of the window, shifted, * rows of the weight. TRANSPOSED: the weight's rows are what is summed over.
template <class T, class S, bool TRANSPOSED, class G>
__device__ inline void multiply_taps(Accumulators<S>& sums, const G& geometry, int phase, const char* window, const char* weights) {
    const WarpTile<S> warp;
    const int lane = warp.lane;
    const uint32_t rows = shared_address(window) + S::In::at(geometry.row_of(warp.pixel + lane % 16), lane / 16);
    const uint32_t columns = shared_address(weights) + S::Weight::at(warp.channel + lane % 8 + lane / 16 * 8, lane / 8 % 2);
    const SummedWeight<T, typename S::Weight> summed(weights, warp.channel);
    const int next_rows = geometry.template next_rows<16>();
    geometry.each_tap(phase, [&](int offset, int tap) {
#pragma unroll
        for (int step = 0; step < S::In::CHUNKS / 2; ++step) {
            uint32_t b[S::COLUMNS / 2][4];
#pragma unroll
            for (int j = 0; j < S::COLUMNS / 2; ++j) {
                if (TRANSPOSED)
                    summed.load(b[j], step, j, tap * S::TAP_BYTES);
                else
                    load_matrices(b[j], columns + tap * S::TAP_BYTES + step * 32 + j * 16 * S::Weight::BYTES);
            }
#pragma unroll
            for (int i = 0; i < S::ROWS; ++i) {
                uint32_t a[4];
                load_matrices(a, rows + offset + i * next_rows + step * 32);
#pragma unroll
                for (int j = 0; j < S::COLUMNS; ++j) multiply_add(sums[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1], T{});
            }
        }
    });
}

}  // namespace fused_preact::cuda
