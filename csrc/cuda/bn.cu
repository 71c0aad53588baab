// The element-wise primitives: statistics, bn_relu and its backward, and the backward of a norm.
#include "kernels.h"
#include "launch.cuh"
#include "norm.cuh"
#include "rows.cuh"

namespace fused_preact::cuda {
namespace {

// Two sums of each channel.
template <int N>
struct Sums {
    Values<N> first, second;

    __device__ void add(const Sums& other) {
        first.add(other.first);
        second.add(other.second);
    }
};

// What the backwards read of a pixel.
template <class T, int N>
struct Two {
    Packed<N, T> grad, x;
};

// One tile of statistics a block: (count, mean, m2).
template <class T, int N>
__global__ void bn_stats_kernel(const T* x, float* stats, int tiles, int64_t pixels, int channels, int columns) {
    extern __shared__ uint4 memory[];
    const Rows rows = Rows::of<N>(pixels, channels, columns);
    const Slots<Values<N>> means{memory, int(blockDim.x)};
    // All sums of a block are about the mean of its first pixels, one a thread: so they are small, and added rather than merged.
    const bool any = rows.inside && rows.begin + rows.row < rows.end;
    const Values<N> opening = any ? load<N>(x + (rows.begin + rows.row) * channels + rows.channel) : Values<N>{};
    const int64_t count = rows.end - rows.begin;
    Values<N> shift = opening;
    add_rows(rows, columns, shift, means);
    if (rows.row == 0) {
        // As T stores it: then differences from it are exact, where values have few bits.
#pragma unroll
        for (int i = 0; i < N; ++i) shift[i] = widened(T(shift[i] / float(max(int64_t(1), min(int64_t(rows.rows), count)))));
        means.put(rows.column, shift);
    }
    __syncthreads();
    shift = means.get(rows.column);
    __syncthreads();
    Sums<N> own{};
    auto take = [&](const Values<N>& value) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float d = value[i] - shift[i];
            own.first[i] += d;
            own.second[i] += d * d;
        }
    };
    if (any) take(opening);
    rows.each<4>(channels, [&](int64_t at) { return Packed<N, T>(x + at); }, [&](int64_t, const Packed<N, T>& value) { take(value.values()); }, 1);
    add_rows(rows, columns, own, Slots<Sums<N>>{memory, int(blockDim.x)});
    if (rows.row > 0 || !rows.inside) return;
    Values<N> tile[3]{};
#pragma unroll
    for (int i = 0; i < N; ++i) {
        if (count == 0) continue;
        const float offset = own.first[i] / float(count);
        const float squares = own.second[i] - own.first[i] * offset;
        tile[0][i] = float(count);
        tile[1][i] = shift[i] + offset;
        tile[2][i] = squares < 0 ? 0 : squares;
    }
    store_tile(stats, tiles, channels, rows.channel, tile);
}

template <class T, int N, bool RELU>
__global__ void bn_relu_kernel(const T* x, const float* bn, int64_t pitch, T* z, int64_t pixels, int channels, int columns) {
    const Rows rows = Rows::of<N>(pixels, channels, columns);
    if (!rows.inside) return;
    const Norm<T, N> norm(bn + rows.channel, pitch);
    rows.each<4>(
        channels, [&](int64_t at) { return Packed<N, T>(x + at); },
        [&](int64_t at, const Packed<N, T>& in) {
            Values<N> value = in.values();
#pragma unroll
            for (int i = 0; i < N; ++i) value[i] = norm(value[i], i);
            store<RELU>(z + at, value);
        });
}

// g = bn(x) <= 0 ? 0 : dz; a tile of its sums a block: (sum g, sum g*xhat), xhat = (x - mean)*invstd, of g as stored.
template <class T, int N, bool RELU>
__global__ void bn_relu_bwd_kernel(const T* dz, const T* x, const float* bn, int64_t pitch, T* g, float* sums, int tiles, int64_t pixels, int channels, int columns) {
    extern __shared__ uint4 memory[];
    const Rows rows = Rows::of<N>(pixels, channels, columns);
    Sums<N> own{};
    if (rows.inside) {
        const Norm<T, N> norm(bn + rows.channel, pitch);
        rows.each<2>(
            channels, [&](int64_t at) { return Two<T, N>{Packed<N, T>(dz + at), Packed<N, T>(x + at)}; },
            [&](int64_t at, const Two<T, N>& two) {
                const Values<N> in = two.x.values();
                Values<N> value = two.grad.values();
                if (RELU) {
#pragma unroll
                    for (int i = 0; i < N; ++i) value[i] = norm(in[i], i) <= 0 ? 0 : value[i];
                }
                if (g) store(g + at, value);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    own.first[i] += value[i];
                    own.second[i] += value[i] * (in[i] - norm.mean[i]);
                }
            });
    }
    add_rows(rows, columns, own, Slots<Sums<N>>{memory, int(blockDim.x)});
    if (rows.row > 0 || !rows.inside) return;
    const Values<N> invstd = cuda::channels<N>(bn + pitch + rows.channel);
#pragma unroll
    for (int i = 0; i < N; ++i) own.second[i] *= invstd[i];
    store_tile(sums, tiles, channels, rows.channel, {own.first, own.second});
}

// dx = a*g + b*(x - mean) + c + add
template <class T, int N, bool ADD>
__global__ void bn_bwd_kernel(const T* g, const T* x, const float* coeffs, const T* add, T* dx, int64_t pixels, int channels, int columns) {
    const Rows rows = Rows::of<N>(pixels, channels, columns);
    if (!rows.inside) return;
    Values<N> factor[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) factor[i] = cuda::channels<N>(coeffs + i * channels + rows.channel);
    struct Three : Two<T, N> {
        Packed<N, T> add;
    };
    rows.each<2>(
        channels,
        [&](int64_t at) {
            return Three{{Packed<N, T>(g + at), Packed<N, T>(x + at)}, ADD ? Packed<N, T>(add + at) : Packed<N, T>{}};
        },
        [&](int64_t at, const Three& three) {
            const Values<N> in = three.x.values(), grad = three.grad.values();
            Values<N> value;
#pragma unroll
            for (int i = 0; i < N; ++i) value[i] = fmaf(factor[0][i], grad[i], fmaf(in[i] - factor[2][i], factor[1][i], factor[3][i]));
            if (ADD) value.add(three.add.values());
            store(dx + at, value);
        });
}

template <class T>
const T* of(const void* p) {
    return static_cast<const T*>(p);
}

// launch(T{}, N, blocks, threads, stream)
template <class Launch>
Status each_dtype(const Elementwise& a, Launch&& launch) {
    return on(a.target, [&](cudaStream_t stream) {
        by_dtype(a.dtype, a.channels, [&](auto t, auto n) {
            const int across = a.channels / n();
            launch(t, n, dim3((across + a.grid.columns - 1) / a.grid.columns, a.grid.blocks), a.grid.columns * a.grid.rows, stream);
        });
    });
}

}  // namespace

Status launch_bn_stats(const Elementwise& a) {
    return each_dtype(a, [&](auto t, auto n, dim3 blocks, int threads, cudaStream_t stream) {
        using T = decltype(t);
        bn_stats_kernel<T, n()><<<blocks, threads, threads * sizeof(Sums<n()>), stream>>>(of<T>(a.x), a.sums, a.tiles, a.pixels, a.channels, a.grid.columns);
    });
}

Status launch_bn_relu(const Elementwise& a) {
    return each_dtype(a, [&](auto t, auto n, dim3 blocks, int threads, cudaStream_t stream) {
        using T = decltype(t);
        const auto kernel = a.relu ? bn_relu_kernel<T, n(), true> : bn_relu_kernel<T, n(), false>;
        kernel<<<blocks, threads, 0, stream>>>(of<T>(a.x), a.bn, a.bn_pitch, static_cast<T*>(a.out), a.pixels, a.channels, a.grid.columns);
    });
}

Status launch_bn_relu_bwd(const Elementwise& a) {
    return each_dtype(a, [&](auto t, auto n, dim3 blocks, int threads, cudaStream_t stream) {
        using T = decltype(t);
        const auto kernel = a.relu ? bn_relu_bwd_kernel<T, n(), true> : bn_relu_bwd_kernel<T, n(), false>;
        kernel<<<blocks, threads, threads * sizeof(Sums<n()>), stream>>>(of<T>(a.grad), of<T>(a.x), a.bn, a.bn_pitch, static_cast<T*>(a.out), a.sums, a.tiles,
                                                                         a.pixels, a.channels, a.grid.columns);
    });
}

Status launch_bn_bwd(const Elementwise& a) {
    return each_dtype(a, [&](auto t, auto n, dim3 blocks, int threads, cudaStream_t stream) {
        using T = decltype(t);
        const auto kernel = a.add ? bn_bwd_kernel<T, n(), true> : bn_bwd_kernel<T, n(), false>;
        kernel<<<blocks, threads, 0, stream>>>(of<T>(a.grad), of<T>(a.x), a.coeffs, of<T>(a.add), static_cast<T*>(a.out), a.pixels, a.channels, a.grid.columns);
    });
}

}  // namespace fused_preact::cuda
