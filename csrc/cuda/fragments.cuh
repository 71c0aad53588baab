// The tensor cores' part: fragments of a tile in shared memory, multiplied.
#pragma once
#include "conv_shape.cuh"
#include "ptx.cuh"

namespace fused_preact::cuda {

// Where a warp's outputs lie in the tile.
template <class S>
struct WarpTile {
    int lane, pixel, channel;

    __device__ WarpTile() : lane(threadIdx.x % 32), pixel(threadIdx.x / 32 / S::ACROSS * S::ROWS * 16), channel(threadIdx.x / 32 % S::ACROSS * S::COLUMNS * 8) {}
};

// Of the mma's layout: accumulator i is pixel lane/4 + 8*(i/2), channel 2*(lane%4) + i%2 of its 16x8 outputs.
template <class S>
using Accumulators = float[S::ROWS][S::COLUMNS][4];

// Rows of a weight that are summed over: fragments of 16 columns and of as many rows as one multiplication takes.
template <class T, class Layout>
struct SummedWeight {
    uint32_t own;  // what the lane loads first

    // Columns from `channel` on.
    __device__ SummedWeight(const char* weight, int channel) {
        const int lane = threadIdx.x % 32;
        own = shared_address(weight) +
              (sizeof(T) == 2 ? Layout::at(lane % 16, channel / 8 + lane / 16) : lane % 4 * Layout::BYTES + (channel + lane / 4) * 4);
    }
    // The step-th rows and the j-th 16 columns, `offset` bytes away.
    __device__ void load(uint32_t (&b)[4], int step, int j, int offset = 0) const {
        load_summed<T, Layout>(b, own + offset + step * 2 * PER_CHUNK<T> * Layout::BYTES + j * 16 * int(sizeof(T)));
    }
};

// sums += slab of z * slab of the weight, transposed
template <class T, class S>
__device__ inline void multiply_slab(Accumulators<S>& sums, const char* slab, const char* weight) {
    using In = typename S::In;
    const WarpTile<S> warp;
    const int lane = warp.lane;
    const uint32_t z = shared_address(slab), w = shared_address(weight);
#pragma unroll
    for (int step = 0; step < In::CHUNKS / 2; ++step) {
        // Lanes 0-15 name the rows of the first chunk of 16 rows, the others those of the second. Words of float32 are what mma wants of tf32.
        const uint32_t z_row = z + In::at(warp.pixel + lane % 16, 2 * step + lane / 16);
        const uint32_t w_row = w + In::at(warp.channel + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2);
        uint32_t b[S::COLUMNS / 2][4];
#pragma unroll
        for (int j = 0; j < S::COLUMNS / 2; ++j) load_matrices(b[j], w_row + j * 16 * In::BYTES);
#pragma unroll
        for (int i = 0; i < S::ROWS; ++i) {
            uint32_t a[4];
            load_matrices(a, z_row + i * 16 * In::BYTES);
#pragma unroll
            for (int j = 0; j < S::COLUMNS; ++j) multiply_add(sums[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1], T{});
        }
    }
}

}  // namespace fused_preact::cuda
