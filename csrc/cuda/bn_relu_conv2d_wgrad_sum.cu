// dweight, the sum of its parts, in a fixed order.
#include <algorithm>

#include "kernels.h"
#include "launch.cuh"
#include "rows.cuh"

namespace fused_preact::cuda {
namespace {

constexpr int THREADS = 256, MOST_ROWS = 32, AT_ONCE = 4;

// Threads across: of few parts, more.
int columns_of(const PartSum& sum) {
    int rows = 1;
    while (rows < MOST_ROWS && 2 * rows * AT_ONCE <= sum.count) rows *= 2;
    return THREADS / rows;
}

// Threads have four neighbours of some parts. blockIdx.y: of which dweight.
template <class T>
__global__ void bn_relu_conv2d_wgrad_sum_kernel(const __grid_constant__ PartSums args) {
    extern __shared__ uint4 memory[];
    const PartSum& sum = args.of[blockIdx.y];
    const int columns = sum.columns, column = threadIdx.x % columns, at = (blockIdx.x * columns + column) * 4;
    if (int(blockIdx.x) * columns * 4 >= sum.size) return;
    const Rows rows{column, int(threadIdx.x / columns), THREADS / columns, at, 0, sum.count, at < sum.size};
    Values<4> own{};
    rows.each<AT_ONCE>(sum.size, [&](int64_t part) { return channels<4>(sum.parts + part); }, [&](int64_t, const Values<4>& part) { own.add(part); });
    add_rows(rows, columns, own, Slots<Values<4>>{memory, THREADS});
    if (rows.row > 0 || !rows.inside) return;
    T* const dweight = static_cast<T*>(sum.dweight);
    if (sum.taps == 1) {
        if constexpr (sizeof(T) == 4)
            store_channels(dweight + at, own);
        else
            *reinterpret_cast<uint2*>(dweight + at) = {detail::narrow<false>({own[0], own[1]}, T{}), detail::narrow<false>({own[2], own[3]}, T{})};
    } else {
        const int row = at / sum.c, k = row / sum.taps;
        T* const to = dweight + (int64_t(k) * sum.c + at - row * sum.c) * sum.taps + row - k * sum.taps;
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i * sum.taps] = T(own[i]);
    }
}

}  // namespace

Status launch_bn_relu_conv2d_wgrad_sum(const PartSums& given) {
    PartSums args = given;
    int blocks = 0;
    for (PartSum* sum = args.of; sum < args.of + args.count; ++sum) {
        sum->columns = columns_of(*sum);
        blocks = std::max(blocks, (sum->size / 4 + sum->columns - 1) / sum->columns);
    }
    return on_dtype(args.target, args.dtype, [&](auto t, cudaStream_t stream) -> Status {
        bn_relu_conv2d_wgrad_sum_kernel<decltype(t)><<<dim3(blocks, args.count), THREADS, THREADS * sizeof(Values<4>), stream>>>(args);
        return {};
    });
}

}  // namespace fused_preact::cuda
