// The micro-kernels: rows of broadcasts times vectors, accumulators in registers. Everything else feeds these or takes from them.
//
//     fprop   rows: output pixels   reduction: input channels    lanes: output channels   rows from the z plane, lanes from the weights
//     dgrad   rows: input pixels    reduction: output channels   lanes: input channels    rows from the dy plane, lanes from the weights
//     wgrad   rows: channels of one side   reduction: pixels     lanes: channels of the other   both from the planes
//
// A step of the reduction is one element E, for bfloat16 a pair of them (vdpbf16ps).
#pragma once
#include "prefetch.h"

namespace fused_preact::FUSED_PREACT_ISA {

template <class E>
constexpr int PAIR = sizeof(E) == 2 ? 2 : 1;

template <class E>
INLINE Vec<wide<E>> mac(Vec<wide<E>> acc, const E* a, const E* b) {
#if defined(__AVX512BF16__)
    if constexpr (sizeof(E) == 2) {
        int pair;
        __builtin_memcpy(&pair, a, sizeof pair);
        return (Vec<float>)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)_mm512_loadu_si512(b));
    } else
#endif
        return broadcast(*a) * load(b) + acc;
}

// A run of `steps` of the reduction, found at `offset` elements from each row's own place in the plane.
struct Segment {
    int64_t offset;
    int steps;
};

// So many steps are added up in registers, then to the tile: a long chain of float32 additions loses digits.
constexpr int CHAIN = 192;

template <class A, int NR, int NV>
INLINE void spill(Vec<A> (&acc)[NR][NV], A* tile, bool fresh) {
    UNROLL for (int r = 0; r < NR; ++r)
        UNROLL for (int v = 0; v < NV; ++v) {
            A* p = tile + (r * NV + v) * LANES<A>;
            store(p, fresh ? acc[r][v] : load(p) + acc[r][v]);
            acc[r][v] = Vec<A>{};
        }
}

// tile[r][lane] (+)= sum over segments: plane[rows[r] + offset + step] * weights[step][lane]; a fresh tile is overwritten.
template <class E, int NV>
KERNEL void rows_block(const E* plane, const int32_t* rows, const Segment* segments, int count, const E* weights, wide<E>* tile, bool fresh,
                       Prefetch& prefetch) {
    constexpr int W = LANES<wide<E>>;
    Vec<wide<E>> acc[ROWS][NV] = {};
    for (int s = 0, chain = 0; s < count; ++s) {
        const E* a[ROWS];
        UNROLL for (int r = 0; r < ROWS; ++r) a[r] = plane + rows[r] + segments[s].offset;
        int64_t n = int64_t(segments[s].steps) * PAIR<E>;
        for (int64_t k = 0; k < n;) {
            prefetch.advance();
            for (const int64_t end = k + PREFETCH_STEPS * PAIR<E>; k < end; k += PAIR<E>, weights += NV * W * PAIR<E>)
                UNROLL for (int r = 0; r < ROWS; ++r)
                    UNROLL for (int v = 0; v < NV; ++v) acc[r][v] = mac(acc[r][v], a[r] + k, weights + v * W * PAIR<E>);
        }
        chain += segments[s].steps;
        if (chain >= CHAIN && s + 1 < count) {
            spill(acc, tile, fresh);
            fresh = false;
            chain = 0;
        }
    }
    spill(acc, tile, fresh);
}

// One vector of lanes starves on broadcasts. Where three taps of a row read neighbouring pixels, each broadcast serves three of them:
// pixel p is tap 0 of row p, tap 1 of row p - 1, tap 2 of row p - 2. Pixels lie PITCH elements apart, a segment is one kernel row.
template <class E, int NR, int PITCH>
KERNEL void three_taps_block(const E* plane, int32_t row, const Segment* segments, int count, const E* weights, wide<E>* tile,
                             Prefetch& prefetch) {
    constexpr int W = LANES<wide<E>>, STEP = W * PAIR<E>, TAP = PITCH / PAIR<E> * STEP;
    Vec<wide<E>> acc[NR] = {};
    for (int s = 0; s < count; ++s, weights += 2 * TAP) {
        prefetch.advance();
        const E* a = plane + row + segments[s].offset;
        for (int k = 0; k < PITCH; k += PAIR<E>, a += PAIR<E>, weights += STEP)
            UNROLL for (int p = 0; p < NR + 2; ++p) {
                const E* pixel = a + p * PITCH;
                if (p < NR) acc[p < NR ? p : 0] = mac(acc[p < NR ? p : 0], pixel, weights);
                if (p >= 1 && p <= NR) acc[p >= 1 ? p - 1 : 0] = mac(acc[p >= 1 ? p - 1 : 0], pixel, weights + TAP);
                if (p >= 2) acc[p >= 2 ? p - 2 : 0] = mac(acc[p >= 2 ? p - 2 : 0], pixel, weights + 2 * TAP);
            }
    }
    UNROLL for (int r = 0; r < NR; ++r) store(tile + r * W, acc[r]);
}

// Rows of pixels in the planes of some images, from a channel on.
template <class E>
struct PixelRows {
    const E* data;
    int64_t pitch, row, image;

    INLINE PixelRows from(int64_t channel) const { return {data + channel * PAIR<E>, pitch, row, image}; }
};

// sums[r][lane] (+)= sum over pixels: a[pixel][r] * b[pixel][lane]; rows of sums are `apart` elements apart, fresh ones are overwritten.
template <class E, int NR, int NV>
KERNEL void pixels_block(PixelRows<E> a, PixelRows<E> b, int64_t images, int64_t rows, int64_t pixels, wide<E>* sums, int64_t apart, bool fresh,
                         Prefetch& prefetch) {
    constexpr int W = LANES<wide<E>>;
    Vec<wide<E>> acc[NR][NV] = {};
    for (int64_t n = 0; n < images; ++n)
        for (int64_t i = 0; i < rows; ++i) {
            const E *p = a.data + n * a.image + i * a.row, *q = b.data + n * b.image + i * b.row;
            for (int64_t j = 0; j < pixels;) {
                prefetch.advance();
                for (const int64_t end = smaller<int64_t>(pixels, j + PREFETCH_STEPS); j < end; ++j, p += a.pitch, q += b.pitch)
                    UNROLL for (int r = 0; r < NR; ++r)
                        UNROLL for (int v = 0; v < NV; ++v) acc[r][v] = mac(acc[r][v], p + r * PAIR<E>, q + v * W * PAIR<E>);
            }
        }
    UNROLL for (int r = 0; r < NR; ++r)
        UNROLL for (int v = 0; v < NV; ++v) {
            wide<E>* to = sums + r * apart + v * W;
            store(to, fresh ? acc[r][v] : load(to) + acc[r][v]);
        }
}

}  // namespace fused_preact::FUSED_PREACT_ISA
