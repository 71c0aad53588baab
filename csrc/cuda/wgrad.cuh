// What the kernels of a weight's gradient share: the tile of a block, the place of a warp in it, and how sums become a part of the gradient.
#pragma once
#include <type_traits>

#include "conv_shape.cuh"
#include "ptx.cuh"
#include "records.h"

namespace fused_preact::cuda {

// A block computes K x C of the gradient, under TAPS taps. Each of its GROUPS of threads (threadIdx.y) takes HEIGHT x WIDTH output pixels at a time.
// The warps of a group share out output channels (DOWN), input channels (ACROSS) and pixels (SHARES). A warp has ROWS tiles of 16 output
// channels, COLUMNS of 8 input channels.
template <class T, int HEIGHT_, int WIDTH_, int K_, int C_, int TAPS_, int DOWN_, int ACROSS_, int SHARES_, int GROUPS_>
struct WgradShape {
    static constexpr int HEIGHT = HEIGHT_, WIDTH = WIDTH_, PIXELS = HEIGHT * WIDTH, K = K_, C = C_, TAPS = TAPS_;
    static constexpr int DOWN = DOWN_, ACROSS = ACROSS_, SHARES = SHARES_, GROUPS = GROUPS_;
    // Blocks that share a multiprocessor's registers: 8 warps, each with many sums and its share of the next tile.
    static constexpr int RESIDENT = 2 / GROUPS;
    static constexpr int THREADS = 32 * DOWN * ACROSS * SHARES, ROWS = K / (16 * DOWN), COLUMNS = C / (8 * ACROSS);
    // Of dy.
    using Out = SummedRows<T, K, Swizzled<T, K>>;
    static constexpr int OUT_BYTES = PIXELS * Out::BYTES;
    // 16x8 sums of a warp; those of half the warps, on their way to the others.
    static constexpr int SUMS = TAPS * ROWS * COLUMNS, SUMS_BYTES = SHARES * GROUPS / 2 * DOWN * ACROSS * SUMS * 32 * 16;
    static_assert(THREADS == 128 && (GROUPS & (GROUPS - 1)) == 0);
    static_assert(K % (16 * DOWN) == 0 && C % (16 * ACROSS) == 0 && PIXELS % (2 * PER_CHUNK<T> * SHARES) == 0 && (SHARES & (SHARES - 1)) == 0);
};

// Of a pointwise convolution, whose pixels are a list. Shared memory: dy, z.
template <class T, int PIXELS_, int K_, int C_, int DOWN_, int ACROSS_, int SHARES_>
struct FlatWgradShape : WgradShape<T, 1, PIXELS_, K_, C_, 1, DOWN_, ACROSS_, SHARES_, 1> {
    using Base = WgradShape<T, 1, PIXELS_, K_, C_, 1, DOWN_, ACROSS_, SHARES_, 1>;
    // An operand, in the words of the loader.
    template <int CHANNELS>
    struct Operand {
        static constexpr int THREADS = Base::THREADS, PIXELS = PIXELS_, SLAB = CHANNELS;
        using In = SummedRows<T, CHANNELS, Swizzled<T, CHANNELS>>;
    };
    using Dy = Operand<K_>;
    using X = Operand<C_>;
    static constexpr int IN_AT = Base::OUT_BYTES, BYTES = IN_AT + PIXELS_ * X::In::BYTES;
    static_assert(BYTES >= Base::SUMS_BYTES);
};

// Of a convolution that reads a window of pixels. Two groups add up to one part: parts are large. Shared memory: for each group dy and the window
// of z; later sums of half the warps.
template <class T, int HEIGHT_, int WIDTH_, int K_, int C_, int TAPS_, int DOWN_, int ACROSS_, int SHARES_>
struct WindowWgradShape : WgradShape<T, HEIGHT_, WIDTH_, K_, C_, TAPS_, DOWN_, ACROSS_, SHARES_, 2> {
    using Base = WgradShape<T, HEIGHT_, WIDTH_, K_, C_, TAPS_, DOWN_, ACROSS_, SHARES_, 2>;
    using In = SummedRows<T, C_>;
    static constexpr bool MANY = false;
    static constexpr int WINDOW_AT = Base::OUT_BYTES;
    static_assert(Base::SUMS <= 18, "so many sums fit a warp's registers, beside the next tile");

    static constexpr int group_bytes(int window_pixels) { return WINDOW_AT + window_pixels * In::BYTES; }
    static constexpr int bytes(int window_pixels) {
        const int all = Base::GROUPS * group_bytes(window_pixels);
        return all > Base::SUMS_BYTES ? all : Base::SUMS_BYTES;
    }
};

// Where a warp's sums lie in the block's, and which share of the pixels it takes.
template <class S>
struct WgradWarp {
    int lane, tile, share, k, c;

    __device__ WgradWarp() : lane(threadIdx.x % 32), tile(threadIdx.x / 32 % (S::DOWN * S::ACROSS)), share(threadIdx.x / 32 / (S::DOWN * S::ACROSS)) {
        k = tile / S::ACROSS * S::ROWS * 16;
        c = tile % S::ACROSS * S::COLUMNS * 8;
    }
};

// Of the mma's layout: sum i of 16x8 is output channel lane/4 + 8*(i/2), input channel 2*(lane%4) + i%2.
template <class S>
using WgradSums = float[S::TAPS][S::ROWS][S::COLUMNS][4];

// Fragments of 16 channels, and of as many pixels as one multiplication takes, that lie with a row for each pixel: of dy, mma's first operand when
// transposed, and of z, its second. A lane names a pixel and a chunk for ldmatrix; of float32 it loads words, from `byte` of the chunk on.
template <class T>
struct LaneOfDy {
    int pixel, chunk, byte;

    __device__ explicit LaneOfDy(int lane)
        : pixel(sizeof(T) == 2 ? lane % 8 + lane / 16 * 8 : lane % 4), chunk(sizeof(T) == 2 ? lane / 8 % 2 : lane / 16),
          byte(sizeof(T) == 2 ? 0 : lane / 4 % 4 * 4) {}

    template <class Layout>
    static __device__ void load(uint32_t (&a)[4], uint32_t at) {
        if constexpr (sizeof(T) == 2)
            load_transposed(a, at);
        else
            a[0] = load_word<0>(at), a[1] = load_word<32>(at), a[2] = load_word<4 * Layout::BYTES>(at), a[3] = load_word<4 * Layout::BYTES + 32>(at);
    }
};
template <class T>
struct LaneOfZ {
    int pixel, chunk, byte;

    __device__ explicit LaneOfZ(int lane)
        : pixel(sizeof(T) == 2 ? lane % 16 : lane % 4), chunk(lane / 16), byte(sizeof(T) == 2 ? 0 : lane / 4 % 4 * 4) {}

    template <class Layout>
    static __device__ void load(uint32_t (&b)[4], uint32_t at) {
        load_summed<T, Layout>(b, at);
    }
};

// Warps that share the pixels, in all groups, add up in pairs, in a fixed order; the first has the result. All threads must come.
template <class S>
__device__ inline void add_shares(WgradSums<S>& sums, void* memory) {
    const WgradWarp<S> warp;
    const int share = threadIdx.y * S::SHARES + warp.share;
    float4* const own = static_cast<float4*>(memory) + warp.lane;
    auto each = [&](int slot, auto&& body) {
#pragma unroll
        for (int i = 0; i < S::SUMS; ++i)
            body(own[((slot * S::DOWN * S::ACROSS + warp.tile) * S::SUMS + i) * 32], sums[i / (S::ROWS * S::COLUMNS)][i / S::COLUMNS % S::ROWS][i % S::COLUMNS]);
    };
#pragma unroll
    for (int half = S::SHARES * S::GROUPS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (share >= half && share < 2 * half) each(share - half, [](float4& slot, const float(&sum)[4]) { slot = {sum[0], sum[1], sum[2], sum[3]}; });
        __syncthreads();
        if (share < half)
            each(share, [](const float4& slot, float(&sum)[4]) {
                const float4 other = slot;
                sum[0] += other.x, sum[1] += other.y, sum[2] += other.z, sum[3] += other.w;
            });
    }
}

// To part [k][taps][c], from output channel `first_k`, input channel `first_c` and tap `first_tap` on, so many taps; channels beyond the last are
// left out.
template <class S>
__device__ inline void store_part(float* part, const WgradSums<S>& sums, const Conv& conv, int first_k, int first_c, int first_tap, int taps) {
    const WgradWarp<S> warp;
    if (threadIdx.y > 0 || warp.share > 0) return;
    const int k = first_k + warp.k, c = first_c + warp.c, step = conv.taps() * conv.c;
    float* const own = part + int64_t(k + warp.lane / 4) * step + first_tap * conv.c + c + 2 * (warp.lane % 4);
    auto store = [&](auto whole) {
        // That are left of the lane's first on.
        const int rows = conv.k - k - warp.lane / 4, columns = conv.c - c - 2 * (warp.lane % 4);
#pragma unroll
        for (int row = 0; row < 2 * S::ROWS; ++row) {
            if (!whole() && 8 * row >= rows) break;
            float* to = own + 8 * row * int64_t(step);
#pragma unroll
            for (int tap = 0; tap < S::TAPS; ++tap, to += conv.c) {
                if (!whole() && tap >= taps) break;
#pragma unroll
                for (int j = 0; j < S::COLUMNS; ++j) {
                    const float(&sum)[4] = sums[tap][row / 2][j];
                    if (whole() || 8 * j < columns) *reinterpret_cast<float2*>(to + 8 * j) = {sum[row % 2 * 2], sum[row % 2 * 2 + 1]};
                }
            }
        }
    };
    if (k + 16 * S::ROWS <= conv.k && c + 8 * S::COLUMNS <= conv.c && taps == S::TAPS)
        store(std::true_type{});
    else
        store(std::false_type{});
}

}  // namespace fused_preact::cuda
