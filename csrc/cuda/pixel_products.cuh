// The products of a pointwise backward: dz of a tile of dy, and sums over pixels for dweight.
#pragma once
#include "fragments.cuh"

namespace fused_preact::cuda {

// sums += slab of dy * rows of the weight, which are what is summed over
template <class T, class S>
__device__ inline void multiply_transposed(Accumulators<S>& sums, const char* slab, const char* weight) {
    using In = typename S::In;
    const WarpTile<S> warp;
    const int lane = warp.lane;
    const uint32_t dy = shared_address(slab);
    const SummedWeight<T, typename S::Weight> columns(weight, warp.channel);
#pragma unroll
    for (int step = 0; step < In::CHUNKS / 2; ++step) {
        const uint32_t row = dy + In::at(warp.pixel + lane % 16, 2 * step + lane / 16);
        uint32_t b[S::COLUMNS / 2][4];
#pragma unroll
        for (int j = 0; j < S::COLUMNS / 2; ++j) columns.load(b[j], step, j);
#pragma unroll
        for (int i = 0; i < S::ROWS; ++i) {
            uint32_t a[4];
            load_matrices(a, row + i * 16 * In::BYTES);
#pragma unroll
            for (int j = 0; j < S::COLUMNS; ++j) multiply_add(sums[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1], T{});
        }
    }
}

// How many of the warps lie one below the other over TALL x WIDE tiles: so that each has the least rows and columns of tiles to load.
constexpr int warps_down(int tall, int wide, int warps) {
    int best = tall < warps ? tall : warps;
    for (int down = best / 2; down > 0 && warps / down <= wide; down /= 2)
        if (tall / down + wide * down / warps < tall / best + wide * best / warps) best = down;
    return best;
}

// dweight [SLAB, OUT] of a block's tiles: sum over pixels of dy * z. A warp has DOWN x ACROSS tiles of 16 channels of dy x 16 of z.
template <class T, class S>
struct PixelProducts {
    static constexpr int TALL = S::SLAB / 16, WIDE = S::OUT / 16, WARPS_DOWN = warps_down(TALL, WIDE, S::WARPS), WARPS_ACROSS = S::WARPS / WARPS_DOWN;
    static constexpr int DOWN = TALL / WARPS_DOWN, ACROSS = WIDE / WARPS_ACROSS;
    float sums[DOWN][ACROSS][2][4] = {};

    __device__ void add(const char* dy, const char* z) {
        static_assert(TALL % WARPS_DOWN == 0 && WIDE % WARPS_ACROSS == 0 && ACROSS > 0);
        const int lane = threadIdx.x % 32;
        uint32_t a_at[DOWN], b_at[ACROSS];
#pragma unroll
        for (int i = 0; i < DOWN; ++i) a_at[i] = shared_address(dy) + S::In::at(lane % 8 + lane / 16 * 8, 2 * (down() + i) + lane / 8 % 2);
#pragma unroll
        for (int j = 0; j < ACROSS; ++j) b_at[j] = shared_address(z) + S::Out::at(lane % 16, 2 * (across() + j) + lane / 16);
#pragma unroll 2
        for (int step = 0; step < S::PIXELS / 16; ++step) {
            uint32_t b[ACROSS][4];
#pragma unroll
            for (int j = 0; j < ACROSS; ++j) load_transposed(b[j], b_at[j] + step * 16 * S::Out::BYTES);
#pragma unroll
            for (int i = 0; i < DOWN; ++i) {
                uint32_t a[4];
                load_transposed(a, a_at[i] + step * 16 * S::In::BYTES);
#pragma unroll
                for (int j = 0; j < ACROSS; ++j)
#pragma unroll
                    for (int half = 0; half < 2; ++half) multiply_add(sums[i][j][half], a, b[j][2 * half], b[j][2 * half + 1], T{});
            }
        }
    }

    __device__ void store(float* part, int k, int c) const {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < DOWN; ++i)
#pragma unroll
            for (int j = 0; j < ACROSS; ++j)
#pragma unroll
                for (int half = 0; half < 2; ++half)
#pragma unroll
                    for (int low = 0; low < 2; ++low) {
                        const int row = 16 * (down() + i) + lane / 4 + 8 * low, column = 16 * (across() + j) + 8 * half + lane % 4 * 2;
                        if (row < k && column < c)
                            *reinterpret_cast<float2*>(part + int64_t(row) * c + column) = {sums[i][j][half][2 * low], sums[i][j][half][2 * low + 1]};
                    }
    }

  private:
    static __device__ int down() { return threadIdx.x / 32 % WARPS_DOWN * DOWN; }
    static __device__ int across() { return threadIdx.x / 32 / WARPS_DOWN * ACROSS; }
};

}  // namespace fused_preact::cuda
