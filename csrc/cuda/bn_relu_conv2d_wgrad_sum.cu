// dweight, the sum of its parts, in a fixed order.
#include "kernels.h"
#include "launch.cuh"
#include "rows.cuh"

namespace fused_preact::cuda {
namespace {

constexpr int THREADS = 256, MOST_ROWS = 32, AT_ONCE = 4;

// Threads have four neighbours of some parts. taps: of [k][c][taps], what dweight is then; 1: it lies in memory as the parts do.
template <class T>
__global__ void bn_relu_conv2d_wgrad_sum_kernel(const float* parts, T* dweight, int count, int size, int columns, int c, int taps) {
    extern __shared__ uint4 memory[];
    const int column = threadIdx.x % columns, at = (blockIdx.x * columns + column) * 4;
    const Rows rows{column, int(threadIdx.x / columns), THREADS / columns, at, 0, count, at < size};
    Values<4> own{};
    rows.each(size, [&](int64_t part) { own.add(channels<4>(parts + part)); });
    add_rows(rows, columns, own, Slots<Values<4>>{memory, THREADS});
    if (rows.row > 0 || !rows.inside) return;
    if (taps == 1) {
        *reinterpret_cast<uint2*>(dweight + at) = {detail::narrow<false>({own[0], own[1]}, T{}), detail::narrow<false>({own[2], own[3]}, T{})};
    } else {
        const int row = at / c, k = row / taps;
        T* const to = dweight + (int64_t(k) * c + at - row * c) * taps + row - k * taps;
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i * taps] = T(own[i]);
    }
}

}  // namespace

Status launch_bn_relu_conv2d_wgrad_sum(const BnReluConv2dBwd& args) {
    const int parts = args.wgrad.parts, taps = args.conv.taps(), size = args.conv.k * taps * args.conv.c;
    int rows = 1;
    while (rows < MOST_ROWS && 2 * rows * AT_ONCE <= parts) rows *= 2;
    const int columns = THREADS / rows, blocks = (size / 4 + columns - 1) / columns;
    return on_halves(args.target, args.dtype, [&](auto t, cudaStream_t stream) -> Status {
        using T = decltype(t);
        bn_relu_conv2d_wgrad_sum_kernel<<<blocks, THREADS, THREADS * sizeof(Values<4>), stream>>>(args.parts, static_cast<T*>(args.dweight), parts, size, columns,
                                                                                               args.conv.c, args.taps_last ? taps : 1);
        return {};
    });
}

}  // namespace fused_preact::cuda
