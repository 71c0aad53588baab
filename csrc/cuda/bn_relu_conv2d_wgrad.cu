// Parts of dweight = conv_wgrad(dy, relu(bn(x))) for pointwise convolutions: dweight[k][c] = sum over pixels dy[p][k] * z[p][c].
#include "gradient.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "prologue.cuh"
#include "wgrad.cuh"

namespace fused_preact::cuda {
namespace {

// sums += dy transposed * z, over the warp's share of a tile's pixels.
template <class T, class S>
__device__ inline void multiply_pixels(WgradSums<S>& sums, const char* dy, const char* z) {
    using In = typename S::X::In;
    constexpr int AT_ONCE = 2 * PER_CHUNK<T>, STEPS = S::PIXELS / AT_ONCE / S::SHARES;
    const WgradWarp<S> warp;
    const LaneOfDy<T> dy_lane(warp.lane);
    const LaneOfZ<T> z_lane(warp.lane);
    const int first = warp.share * STEPS * AT_ONCE;
    uint32_t a_at[S::ROWS], b_at[S::COLUMNS / 2];
#pragma unroll
    for (int i = 0; i < S::ROWS; ++i)
        a_at[i] = shared_address(dy) + S::Out::at(first + dy_lane.pixel, warp.k / PER_CHUNK<T> + i * (16 / PER_CHUNK<T>) + dy_lane.chunk) + dy_lane.byte;
#pragma unroll
    for (int j = 0; j < S::COLUMNS / 2; ++j)
        b_at[j] = shared_address(z) + In::at(first + z_lane.pixel, warp.c / PER_CHUNK<T> + j * (16 / PER_CHUNK<T>) + z_lane.chunk) + z_lane.byte;
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        uint32_t b[S::COLUMNS / 2][4];
#pragma unroll
        for (int j = 0; j < S::COLUMNS / 2; ++j) z_lane.template load<In>(b[j], b_at[j] + step * AT_ONCE * In::BYTES);
#pragma unroll
        for (int i = 0; i < S::ROWS; ++i) {
            uint32_t a[4];
            dy_lane.template load<typename S::Out>(a, a_at[i] + step * AT_ONCE * S::Out::BYTES);
#pragma unroll
            for (int j = 0; j < S::COLUMNS; ++j) multiply_add(sums[0][i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1], T{});
        }
    }
}

// Blocks take tiles of pixels in turn, for their channels of both. While one tile is multiplied, the next is on its way.
template <class T, class S, bool DEFERRED>
__global__ void __launch_bounds__(S::THREADS, S::RESIDENT) bn_relu_conv2d_wgrad_kernel(const __grid_constant__ BnReluConv2dBwd args) {
    extern __shared__ uint4 memory[];
    char *const staged = reinterpret_cast<char*>(memory), *const inputs = staged + S::IN_AT;
    using Source = Gradient<T, DEFERRED>;
    const Conv& conv = args.conv;
    const int64_t pixels = conv.outputs();
    const int tiles = int((pixels + S::PIXELS - 1) / S::PIXELS), k = blockIdx.y, c = blockIdx.z;
    const Prologue prologue = prologue_of(args.bn, args.relu);

    PixelLoader<T, typename S::Dy, typename Source::Raw> dy(args.dy, pixels, conv.k);
    PixelLoader<T, typename S::X> x(args.x, pixels, conv.c);
    const bool has_dy = dy.inside(k), has_x = x.inside(c);
    const Source source(args.dy, args.dy_x, args.dy_coeffs, conv.k, has_dy ? dy.channel(k) : 0);
    auto start = [&](int tile) {
        dy.start(tile, k, [&](const T* from) { return source.read(from); });
        x.start(tile, c);
    };
    start(blockIdx.x);
    ThreadNorm<T> norm;
    if (args.bn) norm = ThreadNorm<T>(args.bn + (has_x ? x.channel(c) : 0), args.bn_pitch);

    WgradSums<S> sums{};
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        // Beyond the last pixel z would be relu(shift), which times 0 is NaN where it is too large for T, and a deferred dy c - b*mean.
        const int in_tile = int(min(pixels - int64_t(tile) * S::PIXELS, int64_t(S::PIXELS))), left = in_tile - dy.thread.row;
        if (in_tile == S::PIXELS)
            apply_prologue(prologue, inputs, x, has_x, norm);
        else
            apply_prologue(prologue, inputs, x, has_x, norm, in_tile - x.thread.row);
        store_slab(staged, dy, has_dy, [&](const typename Source::Raw& raw, int row) { return !DEFERRED || row < left ? source.chunk(raw) : uint4{}; });
        __syncthreads();
        if (tile + int(gridDim.x) < tiles) start(tile + gridDim.x);
        multiply_pixels<T, S>(sums, staged, inputs);
        __syncthreads();
    }
    add_shares<S>(sums, memory);
    store_part<S>(args.parts + int64_t(blockIdx.x) * conv.k * conv.c, sums, conv, k * S::K, c * S::C, 0, 1);
}

// Of the shapes of fused_preact/backends/cuda/shapes.py, the one of this tile.
template <class T, class Body>
bool with_shape(const WgradTile& tile, Body&& body) {
    auto is = [&](auto shape) {
        using S = decltype(shape);
        const bool same = tile.pixels == S::PIXELS && tile.k == S::K && tile.c == S::C;
        if (same) body(shape);
        return same;
    };
    if constexpr (sizeof(T) == 4)
        return is(FlatWgradShape<T, 64, 16, 64, 1, 1, 4>{}) || is(FlatWgradShape<T, 64, 64, 16, 1, 1, 4>{}) ||
               is(FlatWgradShape<T, 64, 32, 64, 1, 2, 2>{}) || is(FlatWgradShape<T, 64, 64, 32, 2, 1, 2>{}) ||
               is(FlatWgradShape<T, 64, 64, 64, 2, 2, 1>{});
    else
        return is(FlatWgradShape<T, 128, 16, 64, 1, 1, 4>{}) || is(FlatWgradShape<T, 128, 64, 16, 1, 1, 4>{}) ||
               is(FlatWgradShape<T, 128, 32, 64, 1, 2, 2>{}) || is(FlatWgradShape<T, 128, 64, 32, 2, 1, 2>{}) ||
               is(FlatWgradShape<T, 64, 64, 64, 2, 2, 1>{});
}

template <class T, bool DEFERRED>
Status launch(const BnReluConv2dBwd& args, cudaStream_t stream) {
    Status status{"no kernel was compiled for the tile"};
    with_shape<T>(args.wgrad, [&](auto shape) {
        using S = decltype(shape);
        static SharedMemoryLimit limit;
        const dim3 blocks(args.wgrad.parts, (args.conv.k + S::K - 1) / S::K, (args.conv.c + S::C - 1) / S::C);
        status = launch_with_memory(bn_relu_conv2d_wgrad_kernel<T, S, DEFERRED>, limit, args.target.device, blocks, S::THREADS, args.wgrad.shared, S::BYTES, stream, args);
    });
    return status;
}

}  // namespace

Status launch_bn_relu_conv2d_wgrad(const BnReluConv2dBwd& args) {
    if (!args.conv.pointwise()) return launch_bn_relu_conv2d_wgrad_window(args);
    return on_dtype(args.target, args.dtype, [&](auto t, cudaStream_t stream) {
        using T = decltype(t);
        return args.dy_coeffs ? launch<T, true>(args, stream) : launch<T, false>(args, stream);
    });
}

}  // namespace fused_preact::cuda
