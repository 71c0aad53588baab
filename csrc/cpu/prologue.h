// What fills the planes: z from x, and dy as it is or deferred. Element type S in memory, E in the plane.
#pragma once
#include "arena.h"
#include "plane.h"

namespace fused_preact::FUSED_PREACT_ISA {

// Runs body.template operator()<NV, TAIL>(channel, lanes) over all channels, up to NV = GROUP vectors at once; the last may be partial.
constexpr int GROUP = VECTOR_BYTES == 64 ? 4 : 2;

template <class A, class Body>
INLINE void channel_groups(int64_t channels, Body&& body) {
    constexpr int W = LANES<A>;
    int64_t c = 0;
    for (; c + GROUP * W <= channels; c += GROUP * W) body.template operator()<GROUP, false>(c, W);
    for (; c + W <= channels; c += W) body.template operator()<1, false>(c, W);
    if (c < channels) body.template operator()<1, true>(c, int(channels - c));
}

// body.template operator()<parity>(row): rows alternate between two sets of accumulators, which halves their rounding and hides latency.
template <class Body>
INLINE void alternate(int64_t rows, Body&& body) {
    int64_t r = 0;
    for (; r + 2 <= rows; r += 2) {
        body.template operator()<0>(r);
        body.template operator()<1>(r + 1);
    }
    if (r < rows) body.template operator()<0>(r);
}

template <bool TAIL, class S>
INLINE Vec<wide<S>> load_lanes(const S* p, int lanes) {
    if constexpr (TAIL)
        return load(p, lanes);
    else
        return load(p);
}
template <bool TAIL, class S>
INLINE void store_lanes(S* p, Vec<wide<S>> v, int lanes) {
    if constexpr (TAIL)
        store(p, v, lanes);
    else
        store(p, v);
}

// The vectors of a norm that make z and the mask: bn(x) = (x - mean)*scale + beta, z = max(floor, bn(x)).
template <class A>
struct Norm {
    const A *mean, *scale, *beta;
    A floor;      // 0, without a ReLU -inf
    A threshold;  // g = bn(x) <= threshold ? 0 : dz: 0, without a ReLU NaN, which nothing is below

    // The same from channel `first` on.
    Norm from(int64_t first) const { return {mean + first, scale + first, beta + first, floor, threshold}; }
};

// Outputs of this many bytes go past the caches: before they are read again, others have taken their place.
constexpr int64_t STREAM_BYTES = 3 << 20;

template <class S>
INLINE bool streamed(const void* p, int64_t pixels, int64_t channels) {
    return pixels * channels * int64_t(sizeof(S)) >= STREAM_BYTES && uintptr_t(p) % VECTOR_BYTES == 0 && channels % LANES<wide<S>> == 0;
}

// Without a norm z is x: (x - 0)*1 + 0.
template <class A>
INLINE Norm<A> norm_of(const void* bn, int64_t pitch, int64_t channels, bool relu, A* identity) {
    relu = relu && bn;
    const A* v = static_cast<const A*>(bn);
    if (!bn) {
        for (int64_t i = 0; i < channels; ++i) identity[i] = 0, identity[channels + i] = 1;
        return {identity, identity + channels, identity, -A(__builtin_inf()), A(__builtin_nan(""))};
    }
    A floor = relu ? A(0) : -A(__builtin_inf());
    return {v, v + 2 * pitch, v + 3 * pitch, floor, relu ? A(0) : A(__builtin_nan(""))};
}

template <class V>
INLINE V normalised(V x, V mean, V scale, V beta) {
    return (x - mean) * scale + beta;
}

// z of `count` pixels, `x_pitch` and `z_pitch` elements apart. Pads channels with zeros up to `padded_channels`.
template <class S, class E>
void activate(const S* x, int64_t x_pitch, E* z, int64_t z_pitch, int64_t count, int64_t channels, int64_t padded_channels,
              const Norm<wide<S>>& norm) {
    using A = wide<S>;
    constexpr int W = LANES<A>;
    const Vec<A> floor = broadcast(norm.floor);
    channel_groups<A>(channels, [&]<int NV, bool TAIL>(int64_t c, int lanes) __attribute__((always_inline)) {
        Vec<A> mean[NV], scale[NV], beta[NV];
        UNROLL for (int v = 0; v < NV; ++v) {
            mean[v] = load_lanes<TAIL>(norm.mean + c + v * W, lanes);
            scale[v] = load_lanes<TAIL>(norm.scale + c + v * W, lanes);
            beta[v] = load_lanes<TAIL>(norm.beta + c + v * W, lanes);
        }
        const S* from = x + c;
        E* to = z + c;
        for (int64_t i = 0; i < count; ++i, from += x_pitch, to += z_pitch)
            UNROLL for (int v = 0; v < NV; ++v) {
                Vec<A> value = normalised(load_lanes<TAIL>(from + v * W, lanes), mean[v], scale[v], beta[v]);
                store(to + v * W, at_least(floor, value));
            }
    });
    int64_t end = round_up(channels, W);
    if (end < padded_channels)
        for (int64_t i = 0; i < count; ++i) clear(z + i * z_pitch + end, padded_channels - end);
}

// dy of a tile, and where it is written out.
template <class S>
struct Incoming {
    const S *dy, *x, *add;
    const wide<S>*a, *b, *mean, *c;
    S* out;
};

// dy of `count` pixels, `pitch` elements apart from element `at` on, into a plane.
template <class S, class E, bool DEFERRED>
void receive(const Incoming<S>& in, int64_t at, int64_t pitch, E* plane, int64_t plane_pitch, int64_t count, int64_t channels,
             int64_t padded_channels, bool write) {
    using A = wide<S>;
    constexpr int W = LANES<A>;
    const S *const dy = in.dy, *const x = in.x, *const add = in.add;
    S* const out = write ? in.out : nullptr;
    channel_groups<A>(channels, [&]<int NV, bool TAIL>(int64_t ch, int lanes) __attribute__((always_inline)) {
        Vec<A> a[NV], b[NV], mean[NV], c[NV];
        if constexpr (DEFERRED) UNROLL for (int v = 0; v < NV; ++v) {
                a[v] = load_lanes<TAIL>(in.a + ch + v * W, lanes);
                b[v] = load_lanes<TAIL>(in.b + ch + v * W, lanes);
                mean[v] = load_lanes<TAIL>(in.mean + ch + v * W, lanes);
                c[v] = load_lanes<TAIL>(in.c + ch + v * W, lanes);
            }
        int64_t from = at + ch;
        E* to = plane + ch;
        for (int64_t i = 0; i < count; ++i, from += pitch, to += plane_pitch)
            UNROLL for (int v = 0; v < NV; ++v) {
                Vec<A> d = load_lanes<TAIL>(dy + from + v * W, lanes);
                if constexpr (DEFERRED) {
                    d = a[v] * d + ((load_lanes<TAIL>(x + from + v * W, lanes) - mean[v]) * b[v] + c[v]);
                    if (add) d += load_lanes<TAIL>(add + from + v * W, lanes);
                }
                store(to + v * W, d);
                if (out) store_lanes<TAIL>(out + from + v * W, d, lanes);
            }
    });
    int64_t end = round_up(channels, W);
    if (end < padded_channels)
        for (int64_t i = 0; i < count; ++i) clear(plane + i * plane_pitch + end, padded_channels - end);
}

}  // namespace fused_preact::FUSED_PREACT_ISA
