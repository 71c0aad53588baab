// y = conv(relu(bn(x)), weight) + bias + residual, and the statistics of y as stored.
#include <omp.h>

#include "fill.h"
#include "gemm.h"
#include "kernels.h"
#include "moments.h"
#include "slices.h"
#include "wide.h"

namespace fused_preact::FUSED_PREACT_ISA {
namespace {

// Where a tile's outputs go, from its first pixel on.
template <class S>
struct Outgoing {
    S* y;
    const S *residual, *bias;
    int64_t pitch, channels;
    bool stream;
    Moments<wide<S>>* moments;
};

template <class S, int NV, bool TAIL, bool STREAM>
INLINE void finish_rows(const Outgoing<S>& out, const wide<S>* tile, const int32_t* pixels, int64_t rows, int64_t channel, bool opening) {
    using A = wide<S>;
    constexpr int W = LANES<A>;
    // Copies, because for all the compiler knows a store could change what `out` points to.
    S* const y = out.y;
    const S* const residual = out.residual;
    const int64_t pitch = out.pitch;
    const bool counts = out.moments;
    int lanes[NV];
    Vec<A> bias[NV] = {}, shift[NV] = {}, sum[2][NV] = {}, square[2][NV] = {};
    UNROLL for (int v = 0; v < NV; ++v) {
        lanes[v] = int(larger<int64_t>(0, smaller<int64_t>(W, out.channels - channel - v * W)));
        if (out.bias) bias[v] = load_lanes<TAIL>(out.bias + channel + v * W, lanes[v]);
        if (out.moments && !opening) shift[v] = load(out.moments->shift + channel + v * W);
    }
    auto value_at = [&](int64_t r, int v, int64_t at) __attribute__((always_inline)) {
        Vec<A> value = load(tile + (r * NV + v) * W) + bias[v];
        if (residual) value += load_lanes<TAIL>(residual + at, lanes[v]);
        return value;
    };
    auto place = [&](int64_t r, int v) __attribute__((always_inline)) { return int64_t(pixels[r]) * pitch + channel + v * W; };
    if (out.moments && opening) {
        for (int64_t r = 0; r < rows; ++r)
            UNROLL for (int v = 0; v < NV; ++v) shift[v] += value_at(r, v, place(r, v));
        UNROLL for (int v = 0; v < NV; ++v) store(out.moments->shift + channel + v * W, shift[v] *= broadcast(A(1) / A(rows)));
    }
    alternate(rows, [&]<int P>(int64_t r) __attribute__((always_inline)) {
        UNROLL for (int v = 0; v < NV; ++v) {
            const int64_t at = place(r, v);
            const Vec<A> value = value_at(r, v, at);
            if constexpr (STREAM)
                stream(y + at, value);
            else
                store_lanes<TAIL>(y + at, value, lanes[v]);
            if (counts) {
                const Vec<A> d = rounded<S>(value) - shift[v];
                sum[P][v] += d;
                square[P][v] += d * d;
            }
        }
    });
    if (out.moments) UNROLL for (int v = 0; v < NV; ++v) {
            A *s = out.moments->sum + channel + v * W, *q = out.moments->square + channel + v * W;
            store(s, load(s) + (sum[0][v] + sum[1][v]));
            store(q, load(q) + (square[0][v] + square[1][v]));
        }
}

template <class S, int NV>
void finish(const Outgoing<S>& out, const wide<S>* tile, const int32_t* pixels, int64_t rows, int64_t channel, bool opening) {
    if (channel + NV * LANES<wide<S>> > out.channels)
        finish_rows<S, NV, true, false>(out, tile, pixels, rows, channel, opening);
    else if (out.stream)
        finish_rows<S, NV, false, true>(out, tile, pixels, rows, channel, opening);
    else
        finish_rows<S, NV, false, false>(out, tile, pixels, rows, channel, opening);
}

template <class S, class E>
struct Fwd {
    using A = wide<S>;

    // What a thread has for itself, but for the planes of a wide layer, which all threads share.
    struct Scratch {
        E *planes, *packed;
        A* tile;
        Pixels pixels;
    };

    const BnReluConv2dFwd& args;
    const bool wide_layer;
    const Conv conv;
    const int64_t c, k, depth, taps_count;
    const Tiling tiling;
    const ZPlanes<S, E> z;
    bool streams, three_taps;
    int segment_count;
    A* identity;
    Tap* taps;
    Segment* segments;
    E *weights, *shared_planes;
    Arena threads;
    size_t moments_bytes, thread_bytes;
    Slices slices;
    int64_t partials;
    size_t moments_at;

    Fwd(const BnReluConv2dFwd& a)
        : args(a),
          wide_layer(is_wide(a.conv)),
          conv(wide_layer ? a.conv : flattened(a.conv)),
          c(conv.c / conv.groups),
          k(conv.k / conv.groups),
          depth(padded(c)),
          taps_count(conv.h.kernel * conv.w.kernel),
          tiling(wide_layer ? wide_tiling_of(conv, [&](const Tiling& t) { return ZPlanes<S, E>(conv, t).image * int64_t(sizeof(E)); })
                            : tiling_of(conv, plane_pitch(c) * sizeof(E), packed_elements<A>(k, c, taps_count) * sizeof(E), a.threads)),
          z(conv, tiling),
          threads{static_cast<char*>(a.workspace.data)},
          moments_bytes(a.stats ? bytes_of([&](Arena& arena) { Moments<A>(arena, k); }) : 0),
          slices(threads, tiling.count(), moments_bytes, a.threads),
          partials(wide_layer ? larger<int64_t>(a.threads, ceil_div(tiling.most_pixels(), GROUP_PIXELS)) : slices.count) {
        identity = threads.take<A>(2 * conv.c);
        taps = threads.take<Tap>(taps_count);
        segments = threads.take<Segment>(most_segments<E>(taps_count, depth));
        weights = threads.take<E>(wide_layer ? 0 : packed_elements<A>(k, c, taps_count));
        shared_planes = threads.take<E>(wide_layer ? tiling.each * z.image : 0);
        moments_at = threads.used;
        threads.used += moments_bytes * partials;
        thread_bytes = bytes_of([&](Arena& arena) { scratch(arena); });
    }

    size_t bytes() const { return threads.used + thread_bytes * args.threads; }

    Scratch scratch(Arena& arena) const {
        const int64_t pixels = tiling.most_pixels();
        if (wide_layer) return {shared_planes, arena.take<E>(depth * PANEL<A>), arena.take<A>(round_up(pixels, ROWS) * PANEL<A>), {arena, pixels}};
        E* planes = arena.take<E>(z.image);
        return {planes, nullptr, arena.take<A>(CHUNK * PANEL<A>), {arena, pixels}};
    }
    Scratch scratch(int thread) const {
        Arena arena{threads.data, threads.used + thread * thread_bytes};
        return scratch(arena);
    }
    Moments<A> moments(int64_t slice) const {
        Arena arena{threads.data, moments_at + slice * moments_bytes};
        return {arena, k};
    }

    void prepare() {
        for (int64_t r = 0, t = 0; r < conv.h.kernel; ++r)
            for (int64_t s = 0; s < conv.w.kernel; ++s, ++t)
                taps[t] = {r * conv.weight_strides[2] + s * conv.weight_strides[3], z.tap(r, s)};
        const Tap one{};
        segment_count = wide_layer ? segments_of<E>(&one, 1, depth, segments) : segments_of<E>(taps, taps_count, depth, segments);
        three_taps = !wide_layer && takes_three_taps<E>(segments, segment_count, k, z.plane.pitch, tiling.columns) && tiling.width % tiling.columns == 0;
        streams = conv.groups == 1 && streamed<S>(args.y, conv.n * conv.h.out * conv.w.out, k);
    }

    // One group, all threads.
    void run(int64_t group) {
        const Norm<A> norm = norm_of(args.bn, args.bn_pitch, conv.c, args.relu, identity).from(group * c);
        const S* weight = static_cast<const S*>(args.weight) + group * k * conv.weight_strides[0];
        slices.reset();
#pragma omp parallel num_threads(args.threads)
        {
            const int t = omp_get_thread_num(), team = omp_get_num_threads();
            Scratch own = scratch(t);
            if (wide_layer)
                together(weight, group, norm, own, t, team);
            else
                tile_by_tile(weight, group, norm, own, t, team);
            if (streams) stream_fence();
#pragma omp barrier
            if (args.stats && t == 0) {
                Moments<A> all = moments(0);
                for (int64_t slice = 1; slice < partials; ++slice) all.merge(moments(slice));
                write_stats(all, k, conv.k, group * k, static_cast<A*>(args.stats));
            }
        }
    }

    void tile_by_tile(const S* weight, int64_t group, const Norm<A>& norm, Scratch& own, int t, int team) {
        pack(weights, weight, {k, conv.weight_strides[0]}, {c, conv.weight_strides[1]}, taps, taps_count, t, team);
#pragma omp barrier
        slices.work(
            t,
            [&](int64_t slice) {
                Moments<A> own_moments = moments(slice);
                if (args.stats) own_moments.reset();
                return own_moments;
            },
            [&](Moments<A>& own_moments, int64_t i, int64_t next) { tile(i, next, group, norm, own, own_moments); },
            [&](Moments<A>& own_moments) {
                if (args.stats) own_moments.flush();
            });
    }

    void tile(int64_t index, int64_t next, int64_t group, const Norm<A>& norm, Scratch& own, Moments<A>& moments) const {
        const Tile tile = tiling[index];
        z.fill(own.planes, args.x, group, norm, tile, 0, 1);
        number(own.pixels, tile);
        Prefetch prefetch;
        if (next >= 0) fetch(prefetch, tiling[next], next == index + 1 ? inputs_of(conv.h, tile.rows) : Span{0, 0});
        const bool opening = moments.pending == 0;
        const Outgoing<S> out = outgoing(tile, group, moments);
        const Gemm<E> gemm{own.planes, weights, segments, segment_count, depth * taps_count, three_taps};
        prefetch.spread(gemm.advances(k, own.pixels.count));
        gemm.run(k, own.pixels, own.tile, prefetch, [&]<int NV>(int64_t lane, int64_t at, int64_t n, const A* values) {
            finish<S, NV>(out, values, own.pixels.memory + at, n, lane, opening && at == 0);
        });
        if (args.stats) moments.added(own.pixels.count);
    }

    // A wide layer's tiles, one after the other.
    void together(const S* weight, int64_t group, const Norm<A>& norm, Scratch& own, int t, int team) const {
        const WideGemm<S, E> gemm{weight, {k, conv.weight_strides[0]}, {c, conv.weight_strides[1]}, taps, taps_count, segments, segment_count, own.packed, own.tile};
        for (int64_t part = t; args.stats && part < partials; part += team) moments(part).reset();
        for (int64_t i = 0; i < tiling.count(); ++i) {
            const Tile tile = tiling[i];
            z.fill(own.planes, args.x, group, norm, tile, t, team);
            number(own.pixels, tile);
            const Parts parts{tile.pixels(), partials};
#pragma omp barrier
            gemm.run(own.planes, own.pixels, parts, t, team, [&]<int NV>(int64_t lane, int64_t part, int64_t at, int64_t n, const A* values) {
                Moments<A> sums = moments(part);
                finish<S, NV>(outgoing(tile, group, sums), values, own.pixels.memory + at, n, lane, at == parts.begin(part));
            });
#pragma omp barrier
            for (int64_t part = t; args.stats && part < partials; part += team) {
                Moments<A> sums = moments(part);
                sums.added(parts.of(part));
                sums.flush();
            }
        }
    }

    void number(Pixels& pixels, const Tile& tile) const {
        pixels.set(tile.images.count, tile.rows.count, tile.columns.count, {z.image, conv.h.stride * z.plane.row, z.plane.pitch},
                   {conv.h.out * conv.w.out, conv.w.out, 1});
    }

    Outgoing<S> outgoing(const Tile& tile, int64_t group, Moments<A>& moments) const {
        const int64_t first = place(tile) * conv.k + group * k;
        const S *residual = static_cast<const S*>(args.residual), *bias = static_cast<const S*>(args.bias);
        return {static_cast<S*>(args.y) + first, residual ? residual + first : nullptr, bias ? bias + group * k : nullptr,
                conv.k, k, streams, args.stats ? &moments : nullptr};
    }

    // The first output pixel of a tile.
    int64_t place(const Tile& tile) const { return (tile.images.first * conv.h.out + tile.rows.first) * conv.w.out + tile.columns.first; }

    // What the next tile reads and this one did not, where it is contiguous.
    void fetch(Prefetch& prefetch, const Tile& next, Span seen) const {
        if (tiling.columns < tiling.width && tiling.height > 1) return;
        const Span rows = inputs_of(conv.h, next.rows), columns = inputs_of(conv.w, next.columns);
        const bool line = tiling.height == 1;
        const int64_t from = larger<int64_t>(0, next.rows.first ? larger(rows.first, seen.end()) : rows.first);
        const int64_t to = smaller(conv.h.in, rows.end()), left = line ? larger<int64_t>(0, columns.first) : 0;
        const int64_t width = line ? smaller(conv.w.in, columns.end()) - left : conv.w.in;
        const S *x = static_cast<const S*>(args.x), *residual = static_cast<const S*>(args.residual);
        prefetch.add(x + ((next.images.first * conv.h.in + from) * conv.w.in + left) * conv.c, (to - from) * width * conv.c * sizeof(S));
        if (residual) prefetch.add(residual + place(next) * conv.k, next.pixels() * conv.k * sizeof(S));
    }
};

template <class S, class E>
Status run(const BnReluConv2dFwd& args) {
    Fwd<S, E> fwd(args);
    if (fwd.bytes() > args.workspace.bytes) return {nullptr, fwd.bytes()};
    if (args.stats) clear(static_cast<wide<S>*>(args.stats), args.tiles * 3 * args.conv.k);
    if (fwd.tiling.count() == 0) return {};
    fwd.prepare();
    for (int64_t group = 0; group < args.conv.groups; ++group) fwd.run(group);
    return {};
}

}  // namespace

Status launch_bn_relu_conv2d_fwd(const BnReluConv2dFwd& given) {
    BnReluConv2dFwd args = given;
    args.threads = threads_for(given.conv, given.threads);
    switch (args.dtype) {
        case Dtype::float32:
            return run<float, float>(args);
        case Dtype::float64:
            return run<double, double>(args);
        case Dtype::bfloat16:
            return run<bf16, paired>(args);
    }
    return {"unknown dtype"};
}

}  // namespace fused_preact::FUSED_PREACT_ISA
