// Two sums of each output channel over the pixels of a tile: on the tensor cores, and from what threads added up.
#pragma once
#include "conv_shape.cuh"
#include "ptx.cuh"

namespace fused_preact::cuda {

// sum v and sum u*v of tiles that are staged in shared memory (layout Out). U, V: 8 channels x 16 pixels. (U over rows of ones) * V^T has the sums of
// products on the diagonal of its upper half, and those of v in each row of the lower. Products of 16-bit values are exact.
template <class T, class S>
struct ColumnSums {
    float products[S::OWN_GROUPS][2][4] = {};

    __device__ void add(const char* u, const char* v) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (int own = 0; own < S::OWN_GROUPS; ++own) {
            const int at = S::Out::at(warp / S::WIDE * 16 + lane % 16, 2 * (warp % S::WIDE + own * S::WIDE) + lane / 16);
#pragma unroll
            for (int i = 0; i < S::PIXELS / 16 / S::SHARES; ++i) {
                uint32_t b[4], a[4];
                load_transposed(b, shared_address(v) + at + i * S::SHARES * 16 * S::Out::BYTES);
                if (u != v) load_transposed(a, shared_address(u) + at + i * S::SHARES * 16 * S::Out::BYTES);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const uint32_t low = b[2 * half], high = b[2 * half + 1];
                    multiply_add(products[own][half], {u == v ? low : a[2 * half], ones(T{}), u == v ? high : a[2 * half + 1], ones(T{})}, low, high, T{});
                }
            }
        }
    }

    // As [2, OUT] in row warp / WIDE of `sums`.
    __device__ void store(float* sums) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, column = 2 * (lane % 4);
#pragma unroll
        for (int own = 0; own < S::OWN_GROUPS; ++own)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float(&d)[4] = products[own][half];
                float* const to = sums + warp / S::WIDE * 2 * S::OUT + (warp % S::WIDE + own * S::WIDE) * 16 + half * 8;
                if (row == 0) *reinterpret_cast<float2*>(to + column) = {d[2], d[3]};
                if (row == column) to[S::OUT + row] = d[0];
                if (row == column + 1) to[S::OUT + row] = d[1];
            }
    }

};

// Two sums of the thread's channels, which it has in the tile's layout, as [2, OUT] in the warp's row of `sums`.
template <class S, int N>
__device__ inline void store_warp_sums(float* sums, Values<N>& first, Values<N>& second) {
    constexpr int CHUNKS = S::Out::CHUNKS;
    static_assert(CHUNKS <= 32);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int apart = CHUNKS; apart < 32; apart *= 2)
#pragma unroll
        for (int i = 0; i < N; ++i) {
            first[i] += __shfl_xor_sync(~0u, first[i], apart);
            second[i] += __shfl_xor_sync(~0u, second[i], apart);
        }
    if (lane >= CHUNKS) return;
    store_channels(sums + warp * 2 * S::OUT + N * lane, first);
    store_channels(sums + (warp * 2 + 1) * S::OUT + N * lane, second);
}

// The two sums of channel threadIdx.x, over so many rows of `sums`.
template <class S>
__device__ inline float2 of_column(const float* sums, int rows) {
    float2 total{};
    if (threadIdx.x < S::OUT)
        for (int row = 0; row < rows; ++row) {
            total.x += sums[row * 2 * S::OUT + threadIdx.x];
            total.y += sums[(row * 2 + 1) * S::OUT + threadIdx.x];
        }
    return total;
}

}  // namespace fused_preact::cuda
