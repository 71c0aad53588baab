// The products of a backward by windows: sums over pixels for dweight, from the window of dy that dz is computed from.
#pragma once
#include "fragments.cuh"
#include "window.cuh"

namespace fused_preact::cuda {

// dweight [SLAB, TAPS, OUT] of a block's tiles: under each tap the sum over pixels of dy, as far away as the tap says, * z. Warps share out tiles of
// 16 channels of dy x 16 of z, halves of the taps, and rows of pixels (SHARES).
template <class T, class S, class G>
struct TapProducts {
    static constexpr int TALL = S::SLAB / 16, WIDE = S::OUT / 16, SHARES = S::WARPS / (2 * TALL * WIDE), OWN_TAPS = (G::TAPS + 1) / 2;
    static constexpr int SUMS_BYTES = S::THREADS / 2 * OWN_TAPS * 2 * 16;
    static_assert(SHARES * 2 * TALL * WIDE == S::WARPS && (SHARES & (SHARES - 1)) == 0 && S::PIXELS % (16 * SHARES) == 0);
    static_assert(SHARES == 1 || SUMS_BYTES <= 3 * S::OUT_BYTES);
    float sums[OWN_TAPS][2][4] = {};

    __device__ void add(const G& geometry, const char* dy, const char* z) {
        constexpr int STEPS = S::PIXELS / 16 / SHARES;
        const int lane = threadIdx.x % 32, first = share() * STEPS * 16;
        const int last_tap = G::offset_of(G::TAPS - 1), next_rows = geometry.template next_rows<16>();
        const uint32_t from = shared_address(dy) + S::In::at(geometry.row_of(first + lane % 8 + lane / 16 * 8), 2 * down() + lane / 8 % 2);
        const uint32_t b_at = shared_address(z) + S::Out::at(first + lane % 16, 2 * across() + lane / 16);
        // The second half of the taps from the last on: as far before it as the first half is beyond the first.
        uint32_t a_at[OWN_TAPS];
#pragma unroll
        for (int i = 0; i < OWN_TAPS; ++i) a_at[i] = half() == 0 ? from + G::offset_of(i) : from + last_tap - G::offset_of(i);
#pragma unroll 2
        for (int step = 0; step < STEPS; ++step) {
            uint32_t b[4];
            load_transposed(b, b_at + step * 16 * S::Out::BYTES);
#pragma unroll
            for (int i = 0; i < OWN_TAPS; ++i) {
                if (!has(i)) continue;
                uint32_t a[4];
                load_transposed(a, a_at[i] + step * next_rows);
#pragma unroll
                for (int j = 0; j < 2; ++j) multiply_add(sums[i][j], a, b[2 * j], b[2 * j + 1], T{});
            }
        }
    }

    // To part [k][tap][c]; memory: SUMS_BYTES that nobody uses any more. All threads must come.
    __device__ void store(float* part, int k, int c, void* memory) {
        add_shares(static_cast<float4*>(memory) + threadIdx.x % (S::THREADS / SHARES));
        if (share() > 0) return;
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < OWN_TAPS; ++i) {
            if (!has(i)) continue;
            const int tap = G::weight_of(half() == 0 ? i : G::TAPS - 1 - i);
#pragma unroll
            for (int j = 0; j < 2; ++j)
#pragma unroll
                for (int low = 0; low < 2; ++low) {
                    const int row = 16 * down() + lane / 4 + 8 * low, column = 16 * across() + 8 * j + lane % 4 * 2;
                    if (row < k && column < c)
                        *reinterpret_cast<float2*>(part + (int64_t(row) * G::TAPS + tap) * c + column) = {sums[i][j][2 * low], sums[i][j][2 * low + 1]};
                }
        }
    }

  private:
    static __device__ int warp() { return threadIdx.x / 32; }
    static __device__ int half() { return warp() % 2; }
    static __device__ int down() { return warp() / 2 % TALL; }
    static __device__ int across() { return warp() / 2 / TALL % WIDE; }
    static __device__ int share() { return warp() / (2 * TALL * WIDE); }
    // The tap in the middle is the first half's.
    static __device__ bool has(int i) { return 2 * i + 1 < G::TAPS || half() == 0; }

    // Warps that share the pixels add up in pairs, in a fixed order.
    __device__ void add_shares(float4* own) {
        constexpr int APART = S::THREADS / SHARES;
        auto each = [&](int slot, auto&& body) {
#pragma unroll
            for (int i = 0; i < 2 * OWN_TAPS; ++i) body(own[(slot * 2 * OWN_TAPS + i) * APART], sums[i / 2][i % 2]);
        };
#pragma unroll
        for (int left = SHARES / 2; left > 0; left /= 2) {
            __syncthreads();
            if (share() >= left && share() < 2 * left) each(share() - left, [](float4& slot, const float(&sum)[4]) { slot = {sum[0], sum[1], sum[2], sum[3]}; });
            __syncthreads();
            if (share() < left)
                each(share(), [](const float4& slot, float(&sum)[4]) { sum[0] += slot.x, sum[1] += slot.y, sum[2] += slot.z, sum[3] += slot.w; });
        }
    }
};

}  // namespace fused_preact::cuda
