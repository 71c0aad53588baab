// g, sums or dx from dz = transposed conv(dy, weight) for pointwise convolutions; and parts of dweight, which read the same dy and x.
#include "gradient.cuh"
#include "input_grad.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "pixel_products.cuh"
#include "x_and_z.cuh"

namespace fused_preact::cuda {
namespace {

// A tile's slab of dy into shared memory; zeros beyond its pixels and channels.
template <class T, class S, int TOGETHER, class Source>
__device__ inline void fill_slab(char* to, const Source& source, const T* dy, int64_t first, int pixels, int k, bool inside) {
    using Thread = Walk<S::THREADS, S::PIXELS, S::In::CHUNKS>;
    const Thread thread;
    char* const own = to + S::In::at(thread.row, thread.chunk);
    each_chunk<Thread, (Thread::COUNT < TOGETHER ? Thread::COUNT : TOGETHER)>(
        thread, source, dy + (first + thread.row) * k, Thread::STEP * k, inside && pixels == S::PIXELS, [&](int row) { return inside && row < pixels; },
        [&](int row, const typename Source::Raw& raw, bool has) { *reinterpret_cast<uint4*>(own + row * S::In::BYTES) = has ? source.chunk(raw) : uint4{}; });
}

// Blocks take tiles of pixels in turn, and slabs of dy's channels of a tile. WGRAD: there is one slab, all channels of x are the block's, and
// products of dy and z add up to its part of dweight.
template <class T, class S, bool WGRAD>
__global__ void __launch_bounds__(S::THREADS, S::RESIDENT) bn_relu_conv2d_dgrad_kernel(const __grid_constant__ BnReluConv2dBwd args) {
    extern __shared__ uint4 memory[];
    char* const staged = reinterpret_cast<char*>(memory);
    char *const x = staged + S::X_AT, *const z = WGRAD ? staged + S::Z_AT : nullptr;
    char *const weights = staged + S::weights_at(WGRAD), *const slab_of_dy = weights + S::BUFFERS * S::TAP_BYTES;
    // Loads that are on their way at once: beside the sums of dweight registers are scarce.
    constexpr int TOGETHER = WGRAD ? 2 : 4;
    const Conv& conv = args.conv;
    const int64_t pixels = conv.inputs();
    const int slabs = S::MANY ? (conv.k + S::SLAB - 1) / S::SLAB : 1, first = blockIdx.y * S::OUT;
    const int tiles = int((pixels + S::PIXELS - 1) / S::PIXELS);
    auto copy_slab = [&](char* to, int slab) {
        copy_weights<T, S::THREADS, S::SLAB, typename S::Weight>(to, args.weight, 1, slab * S::SLAB, conv.k, first, conv.c);
    };

    copy_slab(weights, 0);
    InputGrad<T, S> grad(args, first);
    grad.start();
    PixelProducts<T, S> dweight;
    int turn = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const Outputs<S> outputs = outputs_of<S>(tile, pixels, conv.c);
        Accumulators<S> dz{};
        for (int slab = 0; slab < slabs; ++slab) {
            char *const input = slab_of_dy + turn * S::IN_BYTES, *const weight = weights + turn * S::TAP_BYTES;
            const int channel = slab * S::SLAB + threadIdx.x % S::In::CHUNKS * PER_CHUNK<T>;
            const bool has = channel < conv.k, last = slab + 1 == slabs;
            with_gradient<T>(args, has ? channel : 0, [&](const auto& source) {
                fill_slab<T, S, TOGETHER>(input, source, static_cast<const T*>(args.dy) + channel, int64_t(tile) * S::PIXELS, outputs.columns, conv.k, has);
            });
            if (WGRAD) fill_x_and_z<T, S>(x, z, args, outputs, grad.channel);
            wait_for_copies();
            if (S::MANY || tile == int(blockIdx.x)) round_weights<T, S::THREADS, S::SLAB, typename S::Weight>(weight, 1);
            __syncthreads();
            if (slab == 0) grad.copy_inputs(WGRAD ? nullptr : x, staged, outputs);
            if (S::MANY && !(last && tile + int(gridDim.x) >= tiles)) {
                turn ^= 1;
                copy_slab(weights + turn * S::TAP_BYTES, last ? 0 : slab + 1);
            }
            multiply_transposed<T, S>(dz, input, weight);
            if constexpr (WGRAD) dweight.add(input, z);
        }
        wait_for_copies();
        // Of what all threads copied, and of dy, which is written over.
        __syncthreads();
        grad.stage(staged, dz);
        __syncthreads();
        grad.template finish<WGRAD>(staged, x, z, outputs);
        // x is written over.
        if (WGRAD) __syncthreads();
    }
    grad.store_sums(reinterpret_cast<float*>(staged));
    if constexpr (WGRAD) dweight.store(args.parts + int64_t(blockIdx.x) * conv.k * conv.c, conv.k, conv.c);
}

// Of the shapes of fused_preact/backends/cuda/shapes.py, the one of this tile.
template <class T, class Body>
void with_shape(const BnReluConv2dBwd& args, Body&& body) {
    const ConvTile& tile = args.dgrad;
    const bool many = args.conv.k > tile.slab, wgrad = args.wgrad.parts > 0 && args.wgrad.pixels == 0;
    auto is = [&](auto shape, auto with_wgrad) {
        using S = decltype(shape);
        const bool same = tile.pixels == S::PIXELS && tile.slab == S::SLAB && tile.out == S::OUT && many == S::MANY && wgrad == with_wgrad;
        if (same) body(shape, with_wgrad);
        return same;
    };
    auto both = [&](auto shape) { return is(shape, std::true_type{}); };
    auto dgrad = [&](auto shape) { return is(shape, std::false_type{}); };
    if constexpr (sizeof(T) == 4)
        dgrad(FlatGradShape<T, 128, 64, 16, false, 4, 1, 3>{}) || dgrad(FlatGradShape<T, 128, 32, 32, false, 4, 1, 3>{}) ||
            dgrad(FlatGradShape<T, 128, 32, 32, true, 4, 1, 3>{}) || dgrad(FlatGradShape<T, 64, 16, 64, false, 2, 2, 3>{}) ||
            dgrad(FlatGradShape<T, 64, 32, 64, false, 2, 2, 3>{}) || dgrad(FlatGradShape<T, 64, 32, 64, true, 2, 2, 3>{});
    else
        both(FlatGradShape<T, 128, 64, 16, false, 4, 1, 3>{}) || both(FlatGradShape<T, 64, 128, 32, false, 4, 1, 2>{}) ||
            both(FlatGradShape<T, 128, 16, 64, false, 4, 1, 3>{}) || both(FlatGradShape<T, 128, 32, 128, false, 2, 4, 2>{}) ||
            both(FlatGradShape<T, 64, 64, 64, false, 2, 2, 2>{}) || both(FlatGradShape<T, 64, 256, 64, false, 4, 2, 1>{}) ||
            both(FlatGradShape<T, 64, 64, 256, false, 2, 4, 1>{}) ||
            dgrad(FlatGradShape<T, 128, 64, 16, false, 4, 1, 3>{}) || dgrad(FlatGradShape<T, 64, 128, 32, false, 4, 1, 3>{}) ||
            dgrad(FlatGradShape<T, 128, 16, 64, false, 4, 1, 3>{}) || dgrad(FlatGradShape<T, 128, 32, 128, false, 2, 4, 2>{}) ||
            dgrad(FlatGradShape<T, 64, 64, 64, false, 2, 2, 3>{}) || dgrad(FlatGradShape<T, 64, 64, 64, true, 2, 2, 3>{}) ||
            dgrad(FlatGradShape<T, 64, 64, 128, false, 2, 2, 2>{}) || dgrad(FlatGradShape<T, 64, 64, 128, true, 2, 2, 2>{}) ||
            dgrad(FlatGradShape<T, 64, 64, 256, false, 2, 4, 1>{});
}

template <class T>
Status launch(const BnReluConv2dBwd& args, cudaStream_t stream) {
    Status status{"no kernel was compiled for the tile"};
    with_shape<T>(args, [&](auto shape, auto wgrad) {
        using S = decltype(shape);
        static SharedMemoryLimit limit;
        status = launch_with_memory(bn_relu_conv2d_dgrad_kernel<T, S, wgrad()>, limit, args.target.device,
                                    dim3(args.dgrad.blocks, (args.conv.c + S::OUT - 1) / S::OUT), S::THREADS, args.dgrad.shared, S::bytes(wgrad), stream, args);
    });
    return status;
}

}  // namespace

Status launch_bn_relu_conv2d_dgrad(const BnReluConv2dBwd& args) {
    if (!args.conv.pointwise()) return launch_bn_relu_conv2d_dgrad_window(args);
    return on_dtype(args.target, args.dtype, [&](auto t, cudaStream_t stream) { return launch<decltype(t)>(args, stream); });
}

}  // namespace fused_preact::cuda
