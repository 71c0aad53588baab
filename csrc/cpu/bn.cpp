// The element-wise primitives: statistics, bn_relu and its backward, and the backward of a norm.
#include <omp.h>

#include "dispatch.h"
#include "kernels.h"
#include "moments.h"
#include "prologue.h"
#include "tiles.h"

namespace fused_preact::FUSED_PREACT_ISA {
namespace {

constexpr int64_t CHUNK_PIXELS = 64;

// body(first pixel, pixels) for chunks of thread t's share.
template <class Body>
INLINE void chunks(int64_t pixels, int t, int threads, Body&& body) {
    const Share share(ceil_div(pixels, CHUNK_PIXELS), t, threads);
    for (int64_t i = share.begin; i < share.end; ++i) body(i * CHUNK_PIXELS, smaller(CHUNK_PIXELS, pixels - i * CHUNK_PIXELS));
}

// Per-thread scratch of type T(Arena&, channels), one after the other.
template <class T>
struct PerThread {
    Arena first;
    size_t bytes;
    int64_t channels;

    PerThread(const Workspace& workspace, int64_t c, size_t used = 0) : first{static_cast<char*>(workspace.data), used}, channels(c) {
        Arena counting{nullptr};
        T(counting, channels);
        bytes = counting.used;
    }
    size_t total(int threads) const { return first.used + bytes * threads; }
    T operator[](int thread) const {
        Arena arena{first.data, first.used + thread * bytes};
        return T(arena, channels);
    }
};

template <class S>
Status bn_stats(const Elementwise& args) {
    using A = wide<S>;
    constexpr int W = LANES<A>;
    const int64_t c = args.channels;
    const PerThread<Moments<A>> scratch(args.workspace, c);
    if (scratch.total(args.threads) > args.workspace.bytes) return {nullptr, scratch.total(args.threads)};
    A* stats = static_cast<A*>(args.stats);
    clear(stats, args.tiles * 3 * c);
#pragma omp parallel num_threads(args.threads)
    {
        const int t = omp_get_thread_num(), team = omp_get_num_threads();
        Moments<A> own = scratch[t];
        own.reset();
        chunks(args.pixels, t, team, [&](int64_t first, int64_t n) {
            const bool opening = own.pending == 0;
            channel_groups<A>(c, [&]<int NV, bool TAIL>(int64_t ch, int lanes) __attribute__((always_inline)) {
                const S* x = static_cast<const S*>(args.x) + first * c + ch;
                Vec<A> shift[NV] = {}, sum[2][NV] = {}, square[2][NV] = {};
                for (int64_t i = 0; i < n && opening; ++i)
                    UNROLL for (int v = 0; v < NV; ++v) shift[v] += load_lanes<TAIL>(x + i * c + v * W, lanes);
                UNROLL for (int v = 0; v < NV; ++v) {
                    A* kept = own.shift + ch + v * W;
                    if (opening) store(kept, shift[v] * broadcast(A(1) / A(n)));
                    shift[v] = load(kept);
                }
                alternate(n, [&]<int P>(int64_t i) __attribute__((always_inline)) {
                    UNROLL for (int v = 0; v < NV; ++v) {
                        const Vec<A> d = load_lanes<TAIL>(x + i * c + v * W, lanes) - shift[v];
                        sum[P][v] += d;
                        square[P][v] += d * d;
                    }
                });
                UNROLL for (int v = 0; v < NV; ++v) {
                    A *s = own.sum + ch + v * W, *q = own.square + ch + v * W;
                    store(s, load(s) + (sum[0][v] + sum[1][v]));
                    store(q, load(q) + (square[0][v] + square[1][v]));
                }
            });
            own.added(n);
        });
        own.flush();
#pragma omp barrier
        if (t == 0) {
            for (int other = 1; other < team; ++other) own.merge(scratch[other]);
            write_stats(own, c, c, 0, stats);
        }
    }
    return {};
}

template <class S>
Status bn_relu(const Elementwise& args) {
    using A = wide<S>;
    const int64_t c = args.channels;
    const Norm<A> norm = norm_of<A>(args.bn, args.bn_pitch, c, args.relu, nullptr);
    const bool streams = streamed<S>(args.out, args.pixels, c);
#pragma omp parallel num_threads(args.threads)
    {
        chunks(args.pixels, omp_get_thread_num(), omp_get_num_threads(), [&](int64_t first, int64_t n) {
            channel_groups<A>(c, [&]<int NV, bool TAIL>(int64_t ch, int lanes) __attribute__((always_inline)) {
                constexpr int W = LANES<A>;
                const S* x = static_cast<const S*>(args.x) + first * c + ch;
                S* z = static_cast<S*>(args.out) + first * c + ch;
                const Vec<A> floor = broadcast(norm.floor);
                Vec<A> mean[NV], scale[NV], beta[NV];
                UNROLL for (int v = 0; v < NV; ++v) {
                    mean[v] = load_lanes<TAIL>(norm.mean + ch + v * W, lanes);
                    scale[v] = load_lanes<TAIL>(norm.scale + ch + v * W, lanes);
                    beta[v] = load_lanes<TAIL>(norm.beta + ch + v * W, lanes);
                }
                for (int64_t i = 0; i < n; ++i, x += c, z += c)
                    UNROLL for (int v = 0; v < NV; ++v) {
                        Vec<A> value = at_least(floor, normalised(load_lanes<TAIL>(x + v * W, lanes), mean[v], scale[v], beta[v]));
                        if (streams)
                            stream(z + v * W, value);
                        else
                            store_lanes<TAIL>(z + v * W, value, lanes);
                    }
            });
        });
        if (streams) stream_fence();
    }
    return {};
}

template <class S>
Status bn_relu_bwd(const Elementwise& args) {
    using A = wide<S>;
    const int64_t c = args.channels;
    const Norm<A> norm = norm_of<A>(args.bn, args.bn_pitch, c, args.relu, nullptr);
    const PerThread<Sums<A>> scratch(args.workspace, c);
    if (scratch.total(args.threads) > args.workspace.bytes) return {nullptr, scratch.total(args.threads)};
    A* sums = static_cast<A*>(args.stats);
    clear(sums, args.tiles * 2 * c);
    const bool streams = streamed<S>(args.out, args.pixels, c);
#pragma omp parallel num_threads(args.threads)
    {
        const int t = omp_get_thread_num(), team = omp_get_num_threads();
        Sums<A> own = scratch[t];
        own.reset();
        chunks(args.pixels, t, team, [&](int64_t first, int64_t n) {
            channel_groups<A>(c, [&]<int NV, bool TAIL>(int64_t ch, int lanes) __attribute__((always_inline)) {
                constexpr int W = LANES<A>;
                const S *x = static_cast<const S*>(args.x) + first * c + ch, *dz = static_cast<const S*>(args.grad) + first * c + ch;
                S* g = static_cast<S*>(args.out) + first * c + ch;
                const Vec<A> threshold = broadcast(norm.threshold);
                Vec<A> mean[NV], scale[NV], beta[NV], sum[2][NV] = {}, product[2][NV] = {};
                UNROLL for (int v = 0; v < NV; ++v) {
                    mean[v] = load_lanes<TAIL>(norm.mean + ch + v * W, lanes);
                    scale[v] = load_lanes<TAIL>(norm.scale + ch + v * W, lanes);
                    beta[v] = load_lanes<TAIL>(norm.beta + ch + v * W, lanes);
                }
                alternate(n, [&]<int P>(int64_t i) __attribute__((always_inline)) {
                    UNROLL for (int v = 0; v < NV; ++v) {
                        const int64_t at = i * c + v * W;
                        const Vec<A> in = load_lanes<TAIL>(x + at, lanes);
                        Vec<A> value = load_lanes<TAIL>(dz + at, lanes);
                        value = normalised(in, mean[v], scale[v], beta[v]) <= threshold ? Vec<A>{} : value;
                        if (streams)
                            stream(g + at, value);
                        else
                            store_lanes<TAIL>(g + at, value, lanes);
                        sum[P][v] += value;
                        product[P][v] += value * (in - mean[v]);
                    }
                });
                UNROLL for (int v = 0; v < NV; ++v) own.add(ch + v * W, sum[0][v] + sum[1][v], product[0][v] + product[1][v]);
            });
        });
        if (streams) stream_fence();
#pragma omp barrier
        if (t == 0) {
            for (int other = 1; other < team; ++other) own.merge(scratch[other]);
            write_sums(own, c, c, 0, static_cast<const A*>(args.bn) + args.bn_pitch, sums);
        }
    }
    return {};
}

// dx = a*g + b*(x - mean) + c + add
template <class S>
Status bn_bwd(const Elementwise& args) {
    using A = wide<S>;
    const int64_t c = args.channels;
    const A* coeffs = static_cast<const A*>(args.coeffs);
    const bool streams = streamed<S>(args.out, args.pixels, c);
#pragma omp parallel num_threads(args.threads)
    {
        chunks(args.pixels, omp_get_thread_num(), omp_get_num_threads(), [&](int64_t first, int64_t n) {
            channel_groups<A>(c, [&]<int NV, bool TAIL>(int64_t ch, int lanes) __attribute__((always_inline)) {
                constexpr int W = LANES<A>;
                const int64_t at = first * c + ch;
                const S *g = static_cast<const S*>(args.grad) + at, *x = static_cast<const S*>(args.x) + at;
                const S* add = args.add ? static_cast<const S*>(args.add) + at : nullptr;
                S* dx = static_cast<S*>(args.out) + at;
                Vec<A> factor[4][NV];
                UNROLL for (int i = 0; i < 4; ++i)
                    UNROLL for (int v = 0; v < NV; ++v) factor[i][v] = load_lanes<TAIL>(coeffs + i * c + ch + v * W, lanes);
                for (int64_t i = 0; i < n; ++i)
                    UNROLL for (int v = 0; v < NV; ++v) {
                        const int64_t j = i * c + v * W;
                        Vec<A> value = (load_lanes<TAIL>(x + j, lanes) - factor[2][v]) * factor[1][v] + factor[3][v];
                        value = factor[0][v] * load_lanes<TAIL>(g + j, lanes) + value;
                        if (add) value += load_lanes<TAIL>(add + j, lanes);
                        if (streams)
                            stream(dx + j, value);
                        else
                            store_lanes<TAIL>(dx + j, value, lanes);
                    }
            });
        });
        if (streams) stream_fence();
    }
    return {};
}

}  // namespace

#define BY_DTYPE(name)                                                                                        \
    Status launch_##name(const Elementwise& given) {                                                          \
        Elementwise args = given;                                                                             \
        args.threads = threads_for(given.pixels * given.channels, THREAD_ELEMENTS, given.threads);            \
        if (args.dtype == Dtype::float32) return name<float>(args);                                           \
        return args.dtype == Dtype::float64 ? name<double>(args) : name<bf16>(args);                          \
    }

BY_DTYPE(bn_stats)
BY_DTYPE(bn_relu)
BY_DTYPE(bn_relu_bwd)
BY_DTYPE(bn_bwd)

const Kernels table{launch_bn_relu_conv2d_fwd, launch_bn_relu_conv2d_bwd, launch_bn_stats, launch_bn_relu,
                    launch_bn_relu_bwd,        launch_bn_bwd,             launch_probe};

}  // namespace fused_preact::FUSED_PREACT_ISA
