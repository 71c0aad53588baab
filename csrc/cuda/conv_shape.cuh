// What a convolution kernel is compiled for: the tile of a block, and how its shared memory is laid out.
#pragma once
#include "chunk.cuh"

namespace fused_preact::cuda {

// Rows of 16-bit channels in shared memory. Any 8 consecutive rows have the same chunk in 8 different groups of banks, so that ldmatrix and
// 16-byte accesses meet no conflict: chunks change places within a row, by the row.
template <int CHANNELS>
struct Swizzled {
    static constexpr int CHUNKS = CHANNELS / 8, BYTES = CHANNELS * 2;
    static constexpr int ROWS_APART = CHUNKS < 8 ? 8 / CHUNKS : 1, PLACES = CHUNKS < 8 ? CHUNKS : 8;
    static_assert((CHUNKS & (CHUNKS - 1)) == 0);

    // Offset in bytes. Rows that differ by a multiple of 8 differ by that many BYTES.
    static __device__ int at(int row, int chunk) { return row * BYTES + ((chunk ^ (row / ROWS_APART % PLACES)) << 4); }
};

// A block computes PIXELS x OUT outputs from SLAB input channels at a time; MANY: there are more of them, and two slabs in memory take turns.
// A warp has ROWS tiles of 16 pixels, COLUMNS of 8 channels.
template <int PIXELS_, int SLAB_, int OUT_, bool MANY_, int WARPS_DOWN, int WARPS_ACROSS, int RESIDENT_>
struct ConvShape {
    static constexpr int PIXELS = PIXELS_, SLAB = SLAB_, OUT = OUT_, ACROSS = WARPS_ACROSS, RESIDENT = RESIDENT_;
    static constexpr bool MANY = MANY_;
    static constexpr int WARPS = WARPS_DOWN * WARPS_ACROSS, THREADS = 32 * WARPS;
    static constexpr int ROWS = PIXELS / (16 * WARPS_DOWN), COLUMNS = OUT / (8 * WARPS_ACROSS);
    using In = Swizzled<SLAB>;
    using Out = Swizzled<OUT>;
    // Warps that share the pixels of 16 output channels when sums are taken.
    static constexpr int GROUPS = OUT / 16, SHARES = WARPS / (GROUPS < WARPS ? GROUPS : WARPS);
    static_assert(PIXELS % (16 * WARPS_DOWN) == 0 && OUT % (16 * WARPS_ACROSS) == 0 && SLAB % 16 == 0 && THREADS >= OUT);
    static_assert(PIXELS * In::CHUNKS % THREADS == 0 && PIXELS * Out::CHUNKS % THREADS == 0);

    // Shared memory: slabs of z and of the weight, y (before that the residual), what each warp sums, and vectors of the norm.
    static constexpr int IN_BYTES = PIXELS * In::BYTES, WEIGHT_BYTES = OUT * In::BYTES;
    static constexpr int WEIGHTS_AT = (MANY ? 2 : 1) * IN_BYTES, OUT_AT = WEIGHTS_AT + (MANY ? 2 : 1) * WEIGHT_BYTES;
    static constexpr int SUMS_AT = OUT_AT + PIXELS * Out::BYTES, VECTORS_AT = SUMS_AT + WARPS * 2 * OUT * 4;

    static constexpr int bytes(int channels) { return VECTORS_AT + (channels + SLAB - 1) / SLAB * SLAB * 8; }
};

// Where a thread stands in a tile of rows of CHUNKS chunks: it has one column of chunks and every STEP-th row.
template <int THREADS, int ROWS, int CHUNKS>
struct Walk {
    static constexpr int STEP = THREADS / CHUNKS, COUNT = (ROWS + STEP - 1) / STEP;
    static_assert(THREADS % CHUNKS == 0 && STEP % 8 == 0);
    int chunk, row;

    __device__ Walk() : chunk(threadIdx.x % CHUNKS), row(threadIdx.x / CHUNKS) {}
};

}  // namespace fused_preact::cuda
