// y = conv2d(relu(bn(x)), weight) + bias + residual for convolutions whose outputs read a window of pixels, and the statistics of y.
#include "kernels.h"
#include "prologue.cuh"
#include "statistics.cuh"
#include "window_kernels.cuh"

namespace fused_preact::cuda {
namespace {

// Blocks take tiles of outputs in turn, and slabs of input channels of a tile. z of a slab's window is made once and read under every tap.
template <class T, class S, class G>
__global__ void __launch_bounds__(S::THREADS, S::RESIDENT)
    bn_relu_conv2d_fwd_window_kernel(const __grid_constant__ BnReluConv2dFwd args, const __grid_constant__ Window host_window) {
    extern __shared__ uint4 memory[];
    char* const staged = reinterpret_cast<char*>(memory);
    float* const sums = reinterpret_cast<float*>(staged + S::SUMS_AT);
    const G geometry{host_window};
    char *const weights = staged + S::WEIGHTS_AT, *const window = staged + S::window_at(geometry.taps());
    const int weight_bytes = geometry.taps() * S::TAP_BYTES;
    const Conv& conv = args.conv;
    const Axis &down = conv.y, &across = conv.x;
    const int slabs = S::MANY ? (conv.c + S::SLAB - 1) / S::SLAB : 1, first = blockIdx.y * S::OUT;
    const int tiles = conv.n * ((down.out + S::HEIGHT - 1) / S::HEIGHT) * ((across.out + S::WIDTH - 1) / S::WIDTH);
    const bool inside = first + threadIdx.x % S::Out::CHUNKS * PER_CHUNK<T> < conv.k;
    const Prologue prologue = prologue_of(args.bn, args.relu);
    auto copy_slab = [&](char* to, int slab) {
        copy_weights<T, S::THREADS, S::OUT, typename S::Weight>(to, args.weight, geometry.taps(), first, conv.k, slab * S::SLAB, conv.c);
    };

    copy_slab(weights, 0);
    Statistics<T, S> statistics;
    int turn = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const TileAt at = TileAt::of<S>(tile, down.out, across.out);
        const Outputs<S> outputs{((int64_t(at.image) * down.out + at.y) * across.out + at.x) * conv.k, across.out * conv.k, conv.k,
                                 min(down.out - at.y, S::HEIGHT), min(across.out - at.x, S::WIDTH)};
        Accumulators<S> accumulators;
        start_sums<S>(accumulators, args.bias, first, conv.k);
        for (int slab = 0; slab < slabs; ++slab) {
            const int channel = slab * S::SLAB + threadIdx.x % S::In::CHUNKS * PER_CHUNK<T>;
            const bool has = channel < conv.c;
            const Image<T> image{static_cast<const T*>(args.x) + int64_t(at.image) * down.in * across.in * conv.c + channel, has ? down.in : 0, across.in, conv.c};
            with_prologue(prologue, [&](auto p) {
                fill_window<T, S>(window, geometry, image, at, Activation<T, p()>(args.bn, args.bn_pitch, has ? channel : 0));
            });
            wait_for_copies();
            char* const weight = weights + turn * weight_bytes;
            if (S::MANY || tile == int(blockIdx.x)) round_weights<T, S::THREADS, S::OUT, typename S::Weight>(weight, geometry.taps());
            __syncthreads();
            if (slab == 0 && args.residual) copy_output_like<T, S>(staged, args.residual, outputs, first, conv.k);
            const bool last = slab + 1 == slabs;
            if (S::MANY && !(last && tile + int(gridDim.x) >= tiles)) {
                turn ^= 1;
                copy_slab(weights + turn * weight_bytes, last ? 0 : slab + 1);
            }
            multiply_taps<T, S, false>(accumulators, geometry, 0, window, weight);
            if (S::MANY && !last) __syncthreads();
        }
        if (args.residual) {
            wait_for_copies();
            __syncthreads();
            stage_output<true, T, S>(staged, accumulators);
        } else {
            stage_output<false, T, S>(staged, accumulators);
        }
        __syncthreads();
        store_output<T, S>(args.y, staged, outputs, first, conv.k);
        if (args.stats) statistics.add(staged, sums, outputs, inside);
    }
    if (args.stats) statistics.store(args.stats, args.stats_tiles, first, conv.k);
}

// The shapes of fused_preact/backends/cuda/shapes.py.
template <class T, class Body>
void with_shape(const BnReluConv2dFwd& args, Body body) {
    const WindowKernels<false, Body> kernels{args.conv, args.tile, args.conv.c, body};
    if constexpr (sizeof(T) == 4)
        static_cast<void>(kernels.is_3x3(WindowShape<T, 16, 16, 16, 16, false, 8, 1, 2>{}) ||
            kernels.is_3x3(WindowShape<T, 16, 8, 32, 32, false, 4, 2, 2>{}) ||
            kernels.is_3x3(WindowShape<T, 8, 8, 16, 32, true, 2, 2, 3>{}) ||
            kernels.is_3x3(WindowShape<T, 8, 8, 16, 64, true, 2, 4, 2>{}) ||
            kernels.is_any(WindowShape<T, 8, 8, 16, 32, false, 2, 2, 4>{}) ||
            kernels.is_any(WindowShape<T, 8, 8, 16, 32, true, 2, 2, 4>{}) ||
            kernels.is_any(WindowShape<T, 8, 8, 16, 64, false, 2, 4, 2>{}) ||
            kernels.is_any(WindowShape<T, 8, 8, 16, 64, true, 2, 4, 2>{}));
    else
        static_cast<void>(kernels.is_3x3(WindowShape<T, 16, 16, 16, 16, false, 4, 1, 4>{}) ||
        kernels.is_3x3(WindowShape<T, 16, 16, 32, 32, false, 8, 1, 2>{}) ||
        kernels.is_3x3(WindowShape<T, 8, 8, 64, 32, false, 2, 2, 3>{}) ||
        kernels.is_3x3(WindowShape<T, 8, 8, 64, 64, false, 2, 4, 2>{}) ||
        kernels.is_3x3(WindowShape<T, 8, 16, 32, 64, true, 4, 2, 1>{}) ||
        kernels.is_any(WindowShape<T, 8, 16, 16, 32, false, 4, 1, 4>{}) ||
        kernels.is_any(WindowShape<T, 8, 16, 32, 32, false, 4, 1, 4>{}) ||
        kernels.is_any(WindowShape<T, 8, 16, 32, 64, false, 4, 2, 2>{}) ||
        kernels.is_any(WindowShape<T, 8, 16, 32, 64, true, 4, 2, 2>{}));
}

template <class T>
Status launch(const BnReluConv2dFwd& args, cudaStream_t stream) {
    Status status{"no kernel was compiled for the tile"};
    with_shape<T>(args, [&](auto shape, auto geometry) {
        using S = decltype(shape);
        const Window window = window_of(args.conv, S::HEIGHT, S::WIDTH);
        const int taken = S::bytes(args.conv.taps(), window.y.extent * window.x.extent);
        static SharedMemoryLimit limit;
        status = launch_with_memory(bn_relu_conv2d_fwd_window_kernel<T, S, typename decltype(geometry)::type>, limit, args.target.device,
                                    dim3(args.tile.blocks, (args.conv.k + S::OUT - 1) / S::OUT), S::THREADS, args.tile.shared, taken, stream, args, window);
    });
    return status;
}

}  // namespace

Status launch_bn_relu_conv2d_fwd_window(const BnReluConv2dFwd& args) {
    if (!has_window(args.conv)) return {"the convolution has more taps or phases than a window"};
    return on_dtype(args.target, args.dtype, [&](auto t, cudaStream_t stream) { return launch<decltype(t)>(args, stream); });
}

}  // namespace fused_preact::cuda
