// g, sums or dx from dz = transposed conv(dy, weight), for convolutions whose outputs read a window of pixels; and of narrow 3x3 convolutions parts
// of dweight, which read the same dy and x.
#include "gradient.cuh"
#include "input_grad.cuh"
#include "kernels.h"
#include "tap_products.cuh"
#include "window_kernels.cuh"
#include "x_and_z.cuh"

namespace fused_preact::cuda {
namespace {

struct NoProducts {};

// Blocks take tiles of x in turn; of a tile each phase (of a stride: which of its pixels) with the taps that reach it, and slabs of dy's channels.
// WGRAD: there is one phase and one slab, all channels of x are the block's, and products of dy and z add up to its part of dweight.
template <class T, class S, class G, bool WGRAD>
__global__ void __launch_bounds__(S::THREADS, S::RESIDENT)
    bn_relu_conv2d_dgrad_window_kernel(const __grid_constant__ BnReluConv2dBwd args, const __grid_constant__ Window host_window) {
    extern __shared__ uint4 memory[];
    char* const staged = reinterpret_cast<char*>(memory);
    char *const x = staged + S::X_AT, *const z = WGRAD ? staged + S::Z_AT : nullptr, *const weights = staged + S::weights_at(WGRAD);
    const G geometry{host_window};
    char* const window = staged + S::window_at(WGRAD, geometry.taps());
    const int weight_bytes = geometry.taps() * S::TAP_BYTES;
    const Conv& conv = args.conv;
    const Axis &down = conv.y, &across = conv.x;
    const int slabs = S::MANY ? (conv.k + S::SLAB - 1) / S::SLAB : 1, first = blockIdx.y * S::OUT;
    // Pixels of the first phase, which has most.
    const int height = (down.in + down.stride - 1) / down.stride, width = (across.in + across.stride - 1) / across.stride;
    const int tiles = conv.n * ((height + S::HEIGHT - 1) / S::HEIGHT) * ((width + S::WIDTH - 1) / S::WIDTH);
    auto copy_slab = [&](char* to, int slab) {
        copy_weights<T, S::THREADS, S::SLAB, typename S::Weight>(to, args.weight, geometry.taps(), slab * S::SLAB, conv.k, first, conv.c);
    };

    copy_slab(weights, 0);
    InputGrad<T, S> grad(args, first);
    grad.start();
    std::conditional_t<WGRAD, TapProducts<T, S, G>, NoProducts> dweight;
    int turn = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const TileAt at = TileAt::of<S>(tile, height, width);
        for (int phase = 0; phase < geometry.phases(); ++phase) {
            const Outputs<S> outputs = phase_outputs<S>(geometry, phase, at, conv);
            Accumulators<S> dz{};
            for (int slab = 0; slab < slabs; ++slab) {
                const int channel = slab * S::SLAB + threadIdx.x % S::In::CHUNKS * PER_CHUNK<T>;
                const bool has = channel < conv.k;
                // The window of one slab stays for all phases.
                if (S::MANY || phase == 0) {
                    const int64_t image_at = int64_t(at.image) * down.out * across.out * conv.k + channel;
                    const Image<T> image{static_cast<const T*>(args.dy) + image_at, has ? down.out : 0, across.out, conv.k};
                    with_gradient<T>(args, has ? channel : 0, [&](const auto& source) { fill_window<T, S>(window, geometry, image, at, source); });
                }
                if (WGRAD) fill_x_and_z<T, S>(x, z, args, outputs, grad.channel);
                wait_for_copies();
                char* const weight = weights + turn * weight_bytes;
                if (S::MANY || (phase == 0 && tile == int(blockIdx.x)))
                    round_weights<T, S::THREADS, S::SLAB, typename S::Weight>(weight, geometry.taps());
                __syncthreads();
                if (slab == 0) grad.copy_inputs(WGRAD ? nullptr : x, staged, outputs);
                const bool last = slab + 1 == slabs;
                if (S::MANY && !(last && phase + 1 == geometry.phases() && tile + int(gridDim.x) >= tiles)) {
                    turn ^= 1;
                    copy_slab(weights + turn * weight_bytes, last ? 0 : slab + 1);
                }
                multiply_taps<T, S, true>(dz, geometry, phase, window, weight);
                if constexpr (WGRAD) dweight.add(geometry, window, z);
                if (S::MANY && !last) __syncthreads();
            }
            wait_for_copies();
            __syncthreads();
            grad.stage(staged, dz);
            __syncthreads();
            grad.template finish<WGRAD>(staged, x, z, outputs);
            // x is written over.
            if (WGRAD) __syncthreads();
        }
    }
    grad.store_sums(reinterpret_cast<float*>(staged));
    if constexpr (WGRAD) {
        __syncthreads();
        dweight.store(args.parts + int64_t(blockIdx.x) * conv.k * conv.taps() * conv.c, conv.k, conv.c, staged);
    }
}

// The shapes of fused_preact/backends/cuda/shapes.py: body(shape, Type of geometry, whether it computes parts of dweight).
template <class T, class Body>
void with_shape(const BnReluConv2dBwd& args, Body body) {
    if (args.wgrad.parts > 0 && args.wgrad.pixels == 0) {
        auto both = [&](auto shape, auto geometry) { body(shape, geometry, std::true_type{}); };
        const WindowKernels<true, decltype(both)> kernels{args.conv, args.dgrad, args.conv.k, both};
        if constexpr (sizeof(T) == 2)
            static_cast<void>(kernels.is_3x3(WindowGradShape<T, 16, 16, 16, 16, false, 4, 1, 3>{}) ||
                              kernels.is_3x3(WindowGradShape<T, 16, 16, 32, 32, false, 8, 1, 1>{}));
        return;
    }
    auto dgrad = [&](auto shape, auto geometry) { body(shape, geometry, std::false_type{}); };
    const WindowKernels<true, decltype(dgrad)> kernels{args.conv, args.dgrad, args.conv.k, dgrad};
    if constexpr (sizeof(T) == 4)
        static_cast<void>(kernels.is_3x3(WindowGradShape<T, 16, 16, 16, 16, false, 8, 1, 2>{}) ||
            kernels.is_3x3(WindowGradShape<T, 16, 8, 32, 32, false, 4, 2, 2>{}) ||
            kernels.is_3x3(WindowGradShape<T, 8, 8, 16, 32, true, 2, 2, 3>{}) ||
            kernels.is_3x3(WindowGradShape<T, 8, 8, 16, 64, true, 2, 4, 2>{}) ||
            kernels.is_any(WindowGradShape<T, 8, 8, 16, 32, false, 2, 2, 4>{}) ||
            kernels.is_any(WindowGradShape<T, 8, 8, 16, 32, true, 2, 2, 4>{}) ||
            kernels.is_any(WindowGradShape<T, 8, 8, 16, 64, false, 2, 4, 2>{}) ||
            kernels.is_any(WindowGradShape<T, 8, 8, 16, 64, true, 2, 4, 2>{}));
    else
        static_cast<void>(kernels.is_3x3(WindowGradShape<T, 16, 16, 16, 16, false, 4, 1, 4>{}) ||
        kernels.is_3x3(WindowGradShape<T, 16, 16, 32, 32, false, 8, 1, 2>{}) ||
        kernels.is_3x3(WindowGradShape<T, 8, 8, 64, 32, false, 2, 2, 3>{}) ||
        kernels.is_3x3(WindowGradShape<T, 8, 8, 64, 64, false, 2, 4, 2>{}) ||
        kernels.is_3x3(WindowGradShape<T, 8, 16, 32, 64, true, 4, 2, 1>{}) ||
        kernels.is_any(WindowGradShape<T, 8, 16, 16, 32, false, 4, 1, 3>{}) ||
        kernels.is_any(WindowGradShape<T, 8, 16, 32, 32, false, 4, 1, 3>{}) ||
        kernels.is_any(WindowGradShape<T, 8, 16, 32, 64, false, 4, 2, 1>{}) ||
        kernels.is_any(WindowGradShape<T, 8, 16, 32, 64, true, 4, 2, 1>{}));
}

template <class T>
Status launch(const BnReluConv2dBwd& args, cudaStream_t stream) {
    Status status{"no kernel was compiled for the tile"};
    with_shape<T>(args, [&](auto shape, auto geometry, auto wgrad) {
        using S = decltype(shape);
        const Window window = transposed_window_of(args.conv, S::HEIGHT, S::WIDTH);
        const int taken = S::bytes(wgrad, args.conv.taps(), window.y.extent * window.x.extent);
        static SharedMemoryLimit limit;
        status = launch_with_memory(bn_relu_conv2d_dgrad_window_kernel<T, S, typename decltype(geometry)::type, wgrad()>, limit, args.target.device,
                                    dim3(args.dgrad.blocks, (args.conv.c + S::OUT - 1) / S::OUT), S::THREADS, args.dgrad.shared, taken, stream, args, window);
    });
    return status;
}

}  // namespace

Status launch_bn_relu_conv2d_dgrad_window(const BnReluConv2dBwd& args) {
    if (!has_window(args.conv)) return {"the convolution has more taps or phases than a window"};
    return on_dtype(args.target, args.dtype, [&](auto t, cudaStream_t stream) { return launch<decltype(t)>(args, stream); });
}

}  // namespace fused_preact::cuda
