// The element-wise primitives: statistics, bn_relu and its backward, and the backward of a norm.
#include "kernels.h"
#include "launch.cuh"
#include "rows.cuh"

namespace fused_preact::cuda {
namespace {

// Two sums of a chunk's channels.
template <class T>
struct Sums {
    Chunk<T> first, second;

    __device__ void add(const Sums& other) {
        first.add(other.first);
        second.add(other.second);
    }
};

// One tile of statistics a block: (count, mean, m2).
template <class T>
__global__ void bn_stats_kernel(const T* x, float* stats, int64_t pixels, int channels, int columns) {
    extern __shared__ uint4 memory[];
    const Rows rows = Rows::of<T>(pixels, channels, columns);
    const Slots<Chunk<T>> means{memory, int(blockDim.x)};
    // All sums of a block are about the mean of its first pixels, one a thread: so they are small, and added rather than merged.
    const bool any = rows.inside && rows.begin + rows.row < rows.end;
    const Chunk<T> opening = any ? load(x + (rows.begin + rows.row) * channels + rows.channel) : Chunk<T>{};
    const int64_t count = rows.end - rows.begin;
    Chunk<T> shift = opening;
    add_rows(rows, columns, shift, means);
    if (rows.row == 0) {
#pragma unroll
        for (int i = 0; i < PER_CHUNK<T>; ++i) shift[i] /= float(max(int64_t(1), min(int64_t(rows.rows), count)));
        means.put(rows.column, shift);
    }
    __syncthreads();
    shift = means.get(rows.column);
    __syncthreads();
    Sums<T> own{};
    auto take = [&](const Chunk<T>& value) {
#pragma unroll
        for (int i = 0; i < PER_CHUNK<T>; ++i) {
            const float d = value[i] - shift[i];
            own.first[i] += d;
            own.second[i] += d * d;
        }
    };
    if (any) take(opening);
    rows.each(channels, [&](int64_t at) { take(load(x + at)); }, 1);
    add_rows(rows, columns, own, Slots<Sums<T>>{memory, int(blockDim.x)});
    if (rows.row > 0 || !rows.inside) return;
    float* tile = stats + int64_t(blockIdx.y) * 3 * channels + rows.channel;
    Chunk<T> counts, mean{}, m2{};
#pragma unroll
    for (int i = 0; i < PER_CHUNK<T>; ++i) {
        counts[i] = float(count);
        if (count == 0) continue;
        const float offset = own.first[i] / float(count);
        mean[i] = shift[i] + offset;
        const float squares = own.second[i] - own.first[i] * offset;
        m2[i] = squares < 0 ? 0 : squares;
    }
    store_channels(tile, counts);
    store_channels(tile + channels, mean);
    store_channels(tile + 2 * channels, m2);
}

// What z is computed from, in registers.
template <class T>
struct Norm {
    Chunk<T> mean, scale, beta;

    __device__ Norm(const float* bn, int64_t pitch, int channel)
        : mean(channels<T>(bn + channel)), scale(channels<T>(bn + 2 * pitch + channel)), beta(channels<T>(bn + 3 * pitch + channel)) {}
    // (x - mean)*scale + beta
    __device__ float operator()(float x, int i) const { return fmaf(x - mean[i], scale[i], beta[i]); }
};

template <class T, bool RELU>
__global__ void bn_relu_kernel(const T* x, const float* bn, int64_t pitch, T* z, int64_t pixels, int channels, int columns) {
    const Rows rows = Rows::of<T>(pixels, channels, columns);
    if (!rows.inside) return;
    const Norm<T> norm(bn, pitch, rows.channel);
    rows.each(channels, [&](int64_t at) {
        Chunk<T> value = load(x + at);
#pragma unroll
        for (int i = 0; i < PER_CHUNK<T>; ++i) value[i] = norm(value[i], i);
        store<RELU>(z + at, value);
    });
}

// g = bn(x) <= 0 ? 0 : dz; a tile of its sums a block: (sum g, sum g*xhat), xhat = (x - mean)*invstd, of g as stored.
template <class T, bool RELU>
__global__ void bn_relu_bwd_kernel(const T* dz, const T* x, const float* bn, int64_t pitch, T* g, float* sums, int64_t pixels, int channels, int columns) {
    extern __shared__ uint4 memory[];
    const Rows rows = Rows::of<T>(pixels, channels, columns);
    Sums<T> own{};
    if (rows.inside) {
        const Norm<T> norm(bn, pitch, rows.channel);
        rows.each(channels, [&](int64_t at) {
            const Chunk<T> in = load(x + at);
            Chunk<T> value = load(dz + at);
            if (RELU) {
#pragma unroll
                for (int i = 0; i < PER_CHUNK<T>; ++i) value[i] = norm(in[i], i) <= 0 ? 0 : value[i];
            }
            store(g + at, value);
#pragma unroll
            for (int i = 0; i < PER_CHUNK<T>; ++i) {
                own.first[i] += value[i];
                own.second[i] += value[i] * (in[i] - norm.mean[i]);
            }
        });
    }
    add_rows(rows, columns, own, Slots<Sums<T>>{memory, int(blockDim.x)});
    if (rows.row > 0 || !rows.inside) return;
    const Chunk<T> invstd = cuda::channels<T>(bn + pitch + rows.channel);
#pragma unroll
    for (int i = 0; i < PER_CHUNK<T>; ++i) own.second[i] *= invstd[i];
    float* tile = sums + int64_t(blockIdx.y) * 2 * channels + rows.channel;
    store_channels(tile, own.first);
    store_channels(tile + channels, own.second);
}

// dx = a*g + b*(x - mean) + c + add
template <class T, bool ADD>
__global__ void bn_bwd_kernel(const T* g, const T* x, const float* coeffs, const T* add, T* dx, int64_t pixels, int channels, int columns) {
    const Rows rows = Rows::of<T>(pixels, channels, columns);
    if (!rows.inside) return;
    Chunk<T> factor[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) factor[i] = cuda::channels<T>(coeffs + i * channels + rows.channel);
    rows.each(channels, [&](int64_t at) {
        const Chunk<T> in = load(x + at), grad = load(g + at);
        Chunk<T> value;
#pragma unroll
        for (int i = 0; i < PER_CHUNK<T>; ++i) value[i] = fmaf(factor[0][i], grad[i], fmaf(in[i] - factor[2][i], factor[1][i], factor[3][i]));
        if (ADD) {
            const Chunk<T> more = load(add + at);
#pragma unroll
            for (int i = 0; i < PER_CHUNK<T>; ++i) value[i] += more[i];
        }
        store(dx + at, value);
    });
}

template <class T>
const T* of(const void* p) {
    return static_cast<const T*>(p);
}

}  // namespace

Status launch_bn_stats(const Elementwise& a) {
    return on(a.target, [&](cudaStream_t stream) {
        by_dtype(a.dtype, [&](auto t) {
            using T = decltype(t);
            const int threads = threads_of(a.grid);
            bn_stats_kernel<T><<<blocks_of<T>(a), threads, threads * sizeof(Sums<T>), stream>>>(of<T>(a.x), a.sums, a.pixels, a.channels, a.grid.columns);
        });
    });
}

Status launch_bn_relu(const Elementwise& a) {
    return on(a.target, [&](cudaStream_t stream) {
        by_dtype(a.dtype, [&](auto t) {
            using T = decltype(t);
            const auto kernel = a.relu ? bn_relu_kernel<T, true> : bn_relu_kernel<T, false>;
            kernel<<<blocks_of<T>(a), threads_of(a.grid), 0, stream>>>(of<T>(a.x), a.bn, a.bn_pitch, static_cast<T*>(a.out), a.pixels, a.channels, a.grid.columns);
        });
    });
}

Status launch_bn_relu_bwd(const Elementwise& a) {
    return on(a.target, [&](cudaStream_t stream) {
        by_dtype(a.dtype, [&](auto t) {
            using T = decltype(t);
            const auto kernel = a.relu ? bn_relu_bwd_kernel<T, true> : bn_relu_bwd_kernel<T, false>;
            const int threads = threads_of(a.grid);
            kernel<<<blocks_of<T>(a), threads, threads * sizeof(Sums<T>), stream>>>(of<T>(a.grad), of<T>(a.x), a.bn, a.bn_pitch, static_cast<T*>(a.out), a.sums,
                                                                                 a.pixels, a.channels, a.grid.columns);
        });
    });
}

Status launch_bn_bwd(const Elementwise& a) {
    return on(a.target, [&](cudaStream_t stream) {
        by_dtype(a.dtype, [&](auto t) {
            using T = decltype(t);
            const auto kernel = a.add ? bn_bwd_kernel<T, true> : bn_bwd_kernel<T, false>;
            kernel<<<blocks_of<T>(a), threads_of(a.grid), 0, stream>>>(of<T>(a.grad), of<T>(a.x), a.coeffs, of<T>(a.add), static_cast<T*>(a.out), a.pixels,
                                                                      a.channels, a.grid.columns);
        });
    });
}

}  // namespace fused_preact::cuda
