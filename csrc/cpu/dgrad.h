// The input side of backward: which taps reach which input pixels, and what becomes of dz.
#pragma once
#include "fill.h"
#include "gemm.h"
#include "moments.h"

namespace fused_preact::FUSED_PREACT_ISA {

// Input pixels of one phase of the stride in both axes: a small convolution of dy with the taps that reach them.
template <class E>
struct PhaseConv {
    int64_t row, column;  // the phase
    Tap* taps;
    int64_t count;
    Segment* segments;
    int segment_count;
    E* weights;
    bool three_taps;
};

// dz[h] = sum over r: dy[(h + padding - r*dilation) / stride] * w[r], where that is a whole number.
template <class E>
struct PhaseConvs {
    PhaseConv<E>* all;
    int64_t count;

    // A wide layer's weights are packed where they are used, and its segments are those of one tap.
    PhaseConvs(Arena& arena, const Conv& conv, int64_t c, int64_t k, bool wide_layer) : count(conv.h.stride * conv.w.stride), wide_(wide_layer) {
        using A = wide<E>;
        const int64_t total = conv.h.kernel * conv.w.kernel;
        all = arena.take<PhaseConv<E>>(count);
        taps = arena.take<Tap>(total);
        segments = arena.take<Segment>(most_segments<E>(total, padded(k)));
        weights = arena.take<E>(wide_ ? 0 : packed_elements<A>(c, k, total));
    }

    template <class S>
    void prepare(const Conv& conv, const DyPlanes<S, E>& dy, int64_t c, int64_t k, int64_t columns) {
        using A = wide<E>;
        const Axis &h = conv.h, &w = conv.w;
        int64_t used = 0;
        for (int64_t i = 0; i < count; ++i) {
            PhaseConv<E>& phase = all[i];
            Segment* own = segments + most_segments<E>(used, padded(k));
            phase = {i / w.stride, i % w.stride, taps + used, 0, own, 0, wide_ ? nullptr : weights + packed_elements<A>(c, k, used), false};
            for (int64_t r = h.kernel - 1; r >= 0; --r)
                for (int64_t s = w.kernel - 1; s >= 0; --s) {
                    const int64_t down = phase.row + h.padding - r * h.dilation, right = phase.column + w.padding - s * w.dilation;
                    if (down % h.stride || right % w.stride) continue;
                    phase.taps[phase.count++] = {r * conv.weight_strides[2] + s * conv.weight_strides[3],
                                                 (dy.origin_row + down / h.stride) * dy.plane.row + (dy.origin_column + right / w.stride) * dy.plane.pitch};
                }
            const Tap one{};
            const Tap* joined = wide_ ? &one : phase.taps;
            phase.segment_count = segments_of<E>(joined, wide_ ? smaller<int64_t>(1, phase.count) : phase.count, padded(k), phase.segments);
            phase.three_taps = !wide_ && takes_three_taps<E>(phase.segments, phase.segment_count, c, dy.plane.pitch, columns);
            used += phase.count;
        }
    }

  private:
    bool wide_;
    Tap* taps;
    Segment* segments;
    E* weights;
};

// What becomes of dz, from a tile's first input pixel on.
template <class S>
struct Leaving {
    Emit emit;
    const S *x, *add_dz, *residual_grad;
    S* out;
    int64_t pitch, channels;
    bool stream;
    Norm<wide<S>> norm;
    const wide<S>*a, *b, *mean, *c;
    Sums<wide<S>>* sums;
};

// g = bn(x) <= 0 ? 0 : dz, by the arithmetic that made z; sums of g as stored; dx = a*g + b*(x - mean) + c + residual_grad
template <class S, int NV, bool TAIL, bool STREAM, Emit EMIT>
INLINE void leave_rows(const Leaving<S>& to, const wide<S>* tile, const int32_t* pixels, int64_t rows, int64_t channel) {
    using A = wide<S>;
    constexpr int W = LANES<A>;
    const Vec<A> threshold = broadcast(to.norm.threshold);
    // Copies, because for all the compiler knows a store could change what `to` points to.
    const S *const xs = to.x, *const add_dz = to.add_dz, *const residual_grad = to.residual_grad;
    S* const out = to.out;
    const int64_t pitch = to.pitch;
    int lanes[NV];
    Vec<A> mean[NV], scale[NV], beta[NV], a[NV], b[NV], centre[NV], c[NV], sum[2][NV] = {}, product[2][NV] = {};
    UNROLL for (int v = 0; v < NV; ++v) {
        const int64_t ch = channel + v * W;
        lanes[v] = int(larger<int64_t>(0, smaller<int64_t>(W, to.channels - ch)));
        if constexpr (EMIT != Emit::dz) {
            mean[v] = load_lanes<TAIL>(to.norm.mean + ch, lanes[v]);
            scale[v] = load_lanes<TAIL>(to.norm.scale + ch, lanes[v]);
            beta[v] = load_lanes<TAIL>(to.norm.beta + ch, lanes[v]);
        }
        if constexpr (EMIT == Emit::dx) {
            a[v] = load_lanes<TAIL>(to.a + ch, lanes[v]);
            b[v] = load_lanes<TAIL>(to.b + ch, lanes[v]);
            centre[v] = load_lanes<TAIL>(to.mean + ch, lanes[v]);
            c[v] = load_lanes<TAIL>(to.c + ch, lanes[v]);
        }
    }
    alternate(rows, [&]<int P>(int64_t r) __attribute__((always_inline)) {
        UNROLL for (int v = 0; v < NV; ++v) {
            const int64_t at = int64_t(pixels[r]) * pitch + channel + v * W;
            Vec<A> g = load(tile + (r * NV + v) * W);
            if (add_dz) g += load_lanes<TAIL>(add_dz + at, lanes[v]);
            if constexpr (EMIT != Emit::dz) {
                const Vec<A> x = load_lanes<TAIL>(xs + at, lanes[v]);
                g = normalised(x, mean[v], scale[v], beta[v]) <= threshold ? Vec<A>{} : g;
                g = rounded<S>(g);
                sum[P][v] += g;
                product[P][v] += g * (x - mean[v]);
                if constexpr (EMIT == Emit::dx) {
                    g = a[v] * g + ((x - centre[v]) * b[v] + c[v]);
                    if (residual_grad) g += load_lanes<TAIL>(residual_grad + at, lanes[v]);
                }
            }
            if constexpr (EMIT != Emit::sums) {
                if constexpr (STREAM)
                    stream(out + at, g);
                else
                    store_lanes<TAIL>(out + at, g, lanes[v]);
            }
        }
    });
    if constexpr (EMIT != Emit::dz)
        if (to.sums) UNROLL for (int v = 0; v < NV; ++v) to.sums->add(channel + v * W, sum[0][v] + sum[1][v], product[0][v] + product[1][v]);
}

template <class S, int NV, Emit EMIT>
void leave_as(const Leaving<S>& to, const wide<S>* tile, const int32_t* pixels, int64_t rows, int64_t channel) {
    if (channel + NV * LANES<wide<S>> > to.channels)
        leave_rows<S, NV, true, false, EMIT>(to, tile, pixels, rows, channel);
    else if (to.stream)
        leave_rows<S, NV, false, true, EMIT>(to, tile, pixels, rows, channel);
    else
        leave_rows<S, NV, false, false, EMIT>(to, tile, pixels, rows, channel);
}

template <class S, int NV>
INLINE void leave(const Leaving<S>& to, const wide<S>* tile, const int32_t* pixels, int64_t rows, int64_t channel) {
    switch (to.emit) {
        case Emit::none:
            return;
        case Emit::dz:
            return leave_as<S, NV, Emit::dz>(to, tile, pixels, rows, channel);
        case Emit::g:
            return leave_as<S, NV, Emit::g>(to, tile, pixels, rows, channel);
        case Emit::sums:
            return leave_as<S, NV, Emit::sums>(to, tile, pixels, rows, channel);
        case Emit::dx:
        case Emit::dx_sums:
            return leave_as<S, NV, Emit::dx>(to, tile, pixels, rows, channel);
    }
}

}  // namespace fused_preact::FUSED_PREACT_ISA
