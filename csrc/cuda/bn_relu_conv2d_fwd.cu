// y = conv2d(relu(bn(x)), weight) + bias + residual for 1x1 convolutions, and the statistics of y.
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
    const int slabs = S::MANY ? (args.c + S::SLAB - 1) / S::SLAB : 1, first = blockIdx.y * S::OUT;
    const NormVectors<T, S> vectors(inputs + S::VECTORS_AT, slabs);
    const int tiles = int((args.pixels + S::PIXELS - 1) / S::PIXELS);
    const bool inside = first + threadIdx.x % S::Out::CHUNKS * 8 < args.k;
    const Prologue prologue = !args.bn ? Prologue::none : args.relu ? Prologue::norm_relu : Prologue::norm;

    PixelLoader<T, S> loader(args.x, args.pixels, args.c);
    loader.start(blockIdx.x, 0);
    copy_weights<T, S>(weights, args.weight, first, args.k, 0, args.c);
    if (args.bn) vectors.fill(args.bn, args.bn_pitch, args.c);
    __syncthreads();

    Statistics<T, S> statistics;
    int turn = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int pixels = int(min(args.pixels - int64_t(tile) * S::PIXELS, int64_t(S::PIXELS)));
        Accumulators<S> accumulators;
        start_sums<S>(accumulators, args.bias, first, args.k);
        for (int slab = 0; slab < slabs; ++slab) {
            char *const input = inputs + turn * S::IN_BYTES, *const weight = weights + turn * S::WEIGHT_BYTES;
            const int next = slab + 1 < slabs ? slab + 1 : 0;
            if (S::MANY) turn ^= 1;
            apply_prologue(prologue, input, loader, slab, vectors);
            wait_for_copies();
            __syncthreads();
            if (slab == 0 && args.residual) copy_output_like<T, S>(staged, args.residual, tile, args.pixels, first, args.k);
            if (next || tile + int(gridDim.x) < tiles) {
                loader.start(next ? tile : tile + gridDim.x, next);
                if (S::MANY) copy_weights<T, S>(weights + turn * S::WEIGHT_BYTES, args.weight, first, args.k, next, args.c);
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
        store_output<T, S>(args.y, staged, tile, pixels, first, args.k);
        if (args.stats) statistics.add(staged, sums, pixels, inside);
    }
    if (args.stats) statistics.store(args.stats, args.stats_tiles, first, args.k);
}

// Of the shapes of fused_preact/backends/cuda/tiles.py, the one of this tile.
template <class Body>
bool with_shape(const ConvTile& tile, int channels, Body&& body) {
    auto is = [&](auto shape) {
        using S = decltype(shape);
        const bool same = tile.pixels == S::PIXELS && tile.slab == S::SLAB && tile.out == S::OUT && (channels > S::SLAB) == S::MANY;
        if (same) body(shape);
        return same;
    };
    return is(ConvShape<128, 16, 16, false, 4, 1, 4>{}) || is(ConvShape<128, 32, 16, false, 4, 1, 4>{}) || is(ConvShape<128, 64, 16, false, 4, 1, 4>{}) ||
           is(ConvShape<128, 64, 16, true, 4, 1, 4>{}) || is(ConvShape<128, 16, 32, false, 4, 1, 4>{}) || is(ConvShape<128, 32, 32, false, 4, 1, 4>{}) ||
           is(ConvShape<128, 64, 32, false, 4, 1, 3>{}) || is(ConvShape<128, 64, 32, true, 4, 1, 3>{}) || is(ConvShape<128, 16, 64, false, 4, 1, 3>{}) ||
           is(ConvShape<128, 32, 64, false, 4, 1, 3>{}) || is(ConvShape<64, 64, 64, false, 2, 2, 3>{}) || is(ConvShape<64, 64, 64, true, 2, 2, 3>{}) ||
           is(ConvShape<128, 32, 128, false, 2, 4, 2>{}) || is(ConvShape<64, 64, 128, false, 2, 2, 3>{}) || is(ConvShape<64, 64, 128, true, 2, 2, 2>{});
}

template <class T>
void launch(const BnReluConv2dFwd& args, cudaStream_t stream, Status& status) {
    const bool known = with_shape(args.tile, args.c, [&](auto shape) {
        using S = decltype(shape);
        if (args.tile.shared != S::bytes(args.c)) {
            status.error = "the tile's shared memory is not what the kernel takes";
            return;
        }
        static SharedMemoryLimit limit;
        const auto kernel = bn_relu_conv2d_fwd_kernel<T, S>;
        status = limit.raise(kernel, args.target.device);
        if (status.error) return;
        kernel<<<dim3(args.tile.blocks, (args.k + S::OUT - 1) / S::OUT), S::THREADS, args.tile.shared, stream>>>(args);
    });
    if (!known) status.error = "no kernel was compiled for the tile";
}

}  // namespace

Status launch_bn_relu_conv2d_fwd(const BnReluConv2dFwd& args) {
    Status status;
    const Status launched = on(args.target, [&](cudaStream_t stream) {
        if (args.dtype == Dtype::bfloat16)
            launch<bf16>(args, stream, status);
        else
            launch<f16>(args, stream, status);
    });
    return status.error ? status : launched;
}

}  // namespace fused_preact::cuda
