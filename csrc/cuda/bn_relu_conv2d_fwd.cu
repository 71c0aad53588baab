// y = conv2d(relu(bn(x)), weight) + bias + residual for pointwise convolutions, and the statistics of y.
#include "kernels.h"
#include "launch.cuh"
#include "prologue.cuh"
#include "statistics.cuh"

namespace fused_preact::cuda {
namespace {

// Blocks take tiles of pixels in turn, and slabs of input channels of a tile. While one slab is multiplied, the next is on its way.
template <class T, class S>
__global__ void __launch_bounds__(S::THREADS, S::RESIDENT) bn_relu_conv2d_fwd_kernel(const __grid_constant__ BnReluConv2dFwd args) {
    extern __shared__ uint4 memory[];
    char* const inputs = reinterpret_cast<char*>(memory);
    char *const weights = inputs + S::WEIGHTS_AT, *const staged = inputs + S::OUT_AT;
    float* const sums = reinterpret_cast<float*>(inputs + S::SUMS_AT);
    const Conv& conv = args.conv;
    const int64_t pixels = conv.outputs();
    const int slabs = S::MANY ? (conv.c + S::SLAB - 1) / S::SLAB : 1, first = blockIdx.y * S::OUT;
    const NormVectors<T, S> vectors(inputs + S::VECTORS_AT, slabs);
    const int tiles = int((pixels + S::PIXELS - 1) / S::PIXELS);
    const bool inside = first + threadIdx.x % S::Out::CHUNKS * PER_CHUNK<T> < conv.k;
    const Prologue prologue = prologue_of(args.bn, args.relu);

    PixelLoader<T, S> loader(args.x, pixels, conv.c);
    loader.start(blockIdx.x, 0);
    auto copy_slab = [&](char* to, int slab) { copy_weights<T, S::THREADS, S::OUT, typename S::In>(to, args.weight, 1, first, conv.k, slab * S::SLAB, conv.c); };
    copy_slab(weights, 0);
    if (args.bn) vectors.fill(args.bn, args.bn_pitch, conv.c);
    __syncthreads();

    Statistics<T, S> statistics;
    int turn = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const Outputs<S> outputs = outputs_of<S>(tile, pixels, conv.k);
        Accumulators<S> accumulators;
        start_sums<S>(accumulators, args.bias, first, conv.k);
        for (int slab = 0; slab < slabs; ++slab) {
            char *const input = inputs + turn * S::IN_BYTES, *const weight = weights + turn * S::WEIGHT_BYTES;
            const int next = slab + 1 < slabs ? slab + 1 : 0;
            if (S::MANY) turn ^= 1;
            apply_prologue(prologue, input, loader, slab, vectors);
            wait_for_copies();
            if (S::MANY || tile == int(blockIdx.x)) round_weights<T, S::THREADS, S::OUT, typename S::In>(weight, 1);
            __syncthreads();
            if (slab == 0 && args.residual) copy_output_like<T, S>(staged, args.residual, outputs, first, conv.k);
            if (next || tile + int(gridDim.x) < tiles) {
                loader.start(next ? tile : tile + gridDim.x, next);
                if (S::MANY) copy_slab(weights + turn * S::WEIGHT_BYTES, next);
            }
            multiply_slab<T, S>(accumulators, input, weight);
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

// Of the shapes of fused_preact/backends/cuda/shapes.py, the one of this tile.
template <class T, class Body>
bool with_shape(const ConvTile& tile, int channels, Body&& body) {
    auto is = [&](auto shape) {
        using S = decltype(shape);
        const bool same = tile.pixels == S::PIXELS && tile.slab == S::SLAB && tile.out == S::OUT && (channels > S::SLAB) == S::MANY;
        if (same) body(shape);
        return same;
    };
    if constexpr (sizeof(T) == 4)
        return is(FlatShape<T, 128, 64, 16, false, 4, 1, 3>{}) || is(FlatShape<T, 128, 32, 32, false, 4, 1, 4>{}) ||
               is(FlatShape<T, 128, 32, 32, true, 4, 1, 3>{}) || is(FlatShape<T, 128, 16, 64, false, 4, 1, 3>{}) ||
               is(FlatShape<T, 64, 32, 64, false, 2, 2, 4>{}) || is(FlatShape<T, 64, 32, 64, true, 2, 2, 3>{});
    else
        return is(FlatShape<T, 128, 16, 16, false, 4, 1, 4>{}) || is(FlatShape<T, 128, 32, 16, false, 4, 1, 4>{}) ||
               is(FlatShape<T, 128, 64, 16, false, 4, 1, 4>{}) || is(FlatShape<T, 128, 64, 16, true, 4, 1, 4>{}) ||
               is(FlatShape<T, 128, 16, 32, false, 4, 1, 4>{}) || is(FlatShape<T, 128, 32, 32, false, 4, 1, 4>{}) ||
               is(FlatShape<T, 128, 64, 32, false, 4, 1, 3>{}) || is(FlatShape<T, 128, 64, 32, true, 4, 1, 3>{}) ||
               is(FlatShape<T, 128, 16, 64, false, 4, 1, 3>{}) || is(FlatShape<T, 128, 32, 64, false, 4, 1, 3>{}) ||
               is(FlatShape<T, 64, 64, 64, false, 2, 2, 3>{}) || is(FlatShape<T, 64, 64, 64, true, 2, 2, 3>{}) ||
               is(FlatShape<T, 128, 32, 128, false, 2, 4, 2>{}) || is(FlatShape<T, 64, 64, 128, false, 2, 2, 3>{}) ||
               is(FlatShape<T, 64, 64, 128, true, 2, 2, 2>{});
}

template <class T>
Status launch(const BnReluConv2dFwd& args, cudaStream_t stream) {
    Status status{"no kernel was compiled for the tile"};
    with_shape<T>(args.tile, args.conv.c, [&](auto shape) {
        using S = decltype(shape);
        static SharedMemoryLimit limit;
        status = launch_with_memory(bn_relu_conv2d_fwd_kernel<T, S>, limit, args.target.device, dim3(args.tile.blocks, (args.conv.k + S::OUT - 1) / S::OUT),
                                    S::THREADS, args.tile.shared, S::bytes(args.conv.c), stream, args);
    });
    return status;
}

}  // namespace

Status launch_bn_relu_conv2d_fwd(const BnReluConv2dFwd& args) {
    if (!args.conv.pointwise()) return launch_bn_relu_conv2d_fwd_window(args);
    return on_dtype(args.target, args.dtype, [&](auto t, cudaStream_t stream) { return launch<decltype(t)>(args, stream); });
}

}  // namespace fused_preact::cuda
