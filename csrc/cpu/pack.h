// Weights as the micro-kernels read them: panels of lanes, [panel][tap][reduction][lane], pairs of the reduction side by side for bfloat16.
#pragma once
#include "arena.h"
#include "mac.h"
#include "plane.h"

namespace fused_preact::FUSED_PREACT_ISA {

// One side of a weight: `count` channels, `stride` elements apart.
struct Side {
    int64_t count, stride;
};

// A tap: its place in the weight, and the displacement in the plane of the pixel that it reads.
struct Tap {
    int64_t weight, plane;
};

template <class A>
constexpr int PANEL = COLUMNS * LANES<A>;

INLINE int64_t panels(int64_t lanes, int width) { return ceil_div(lanes, width); }

// Lanes of panel i: a whole one, or a single vector if that holds the rest.
template <class A>
INLINE int panel_vectors(int64_t lanes, int64_t panel) {
    return lanes - panel * PANEL<A> <= LANES<A> ? 1 : COLUMNS;
}

template <class A>
INLINE int64_t packed_elements(int64_t lanes, int64_t reduction, int64_t taps) {
    return round_up(lanes, PANEL<A>) * padded(reduction) * taps;
}

template <class S, class E>
INLINE E converted(S value) {
    if constexpr (sizeof(S) == sizeof(E))
        return value;
    else
        return E(widened(value));
}

// A square of 32-bit words, floats or pairs of bfloat16, from rows to columns; pitches in elements.
template <class T>
INLINE void transpose_words(const T* from, int64_t from_pitch, T* to, int64_t to_pitch) {
    constexpr int W = LANES<uint32_t>;
    Bits rows[W];
    UNROLL for (int i = 0; i < W; ++i) __builtin_memcpy(rows + i, from + i * from_pitch, sizeof rows[i]);
    transpose(rows);
    UNROLL for (int i = 0; i < W; ++i) __builtin_memcpy(to + i * to_pitch, rows + i, sizeof rows[i]);
}

#if defined(__AVX512BF16__)
// Rows 2*i and 2*i + 1 with their channels side by side, as a reduction over pairs of rows wants them; they end with a row of zeros where
// `count` is odd.
template <class E>
void pair_rows(const E* row, int64_t pitch, int64_t count, int64_t channels, E* pairs, int64_t pairs_pitch) {
    static_assert(sizeof(E) == 2);
    for (int64_t i = 0; i < count; i += 2, row += 2 * pitch, pairs += pairs_pitch)
        for (int64_t c = 0; c < channels; c += CHANNEL_PAD) {
            Quarter first, second = {};
            __builtin_memcpy(&first, row + c, sizeof first);
            if (i + 1 < count) __builtin_memcpy(&second, row + pitch + c, sizeof second);
            const auto both = interleaved(first, second);
            __builtin_memcpy(pairs + 2 * c, &both, sizeof both);
        }
}
#endif

// One tap of a panel whose first lane is `first`: [reduction][lane].
template <class S, class E>
void pack_piece(E* to, const S* weight, Side lanes, Side reduction, int64_t first) {
    using A = wide<E>;
    constexpr int P = PAIR<E>;
    const int64_t depth = padded(reduction.count);
    const int width = panel_vectors<A>(lanes.count, first / PANEL<A>) * LANES<A>, filled = int(smaller<int64_t>(width, lanes.count - first));
    const S* from = weight + first * lanes.stride;
    if (filled < width || reduction.count < depth) clear(to, depth * width);
    auto at = [&](int64_t k) { return to + k / P * P * width + k % P; };
    if (lanes.stride == 1) {
#if defined(__AVX512BF16__)
        if constexpr (P == 2)
            if (filled % CHANNEL_PAD == 0) return pair_rows(from, reduction.stride, reduction.count, filled, to, P * width);
#endif
        for (int64_t k = 0; k < reduction.count; ++k)
            for (int i = 0; i < filled; ++i) at(k)[i * P] = converted<S, E>(from[k * reduction.stride + i]);
        return;
    }
    // A transposition, in blocks that read whole cache lines and write what stays in L1.
    int64_t done = 0;
    if constexpr (sizeof(S) * P == sizeof(uint32_t)) {
        constexpr int W = LANES<uint32_t>;
        if (reduction.stride == 1 && filled % W == 0)
            for (; done + W * P <= reduction.count; done += W * P)
                for (int i = 0; i < filled; i += W) transpose_words(from + i * lanes.stride + done, lanes.stride, to + done * width + i * P, width * P);
    }
    for (int64_t k0 = done; k0 < reduction.count; k0 += CHANNEL_PAD)
        for (int i = 0; i < filled; ++i)
            for (int64_t k = k0; k < smaller(reduction.count, k0 + CHANNEL_PAD); ++k)
                at(k)[i * P] = converted<S, E>(from[i * lanes.stride + k * reduction.stride]);
}

// The share of thread t: whole (panel, tap) pieces.
template <class S, class E>
void pack(E* packed, const S* weight, Side lanes, Side reduction, const Tap* taps, int64_t count, int t, int threads) {
    using A = wide<E>;
    const int64_t depth = padded(reduction.count);
    const Share share(panels(lanes.count, PANEL<A>) * count, t, threads);
    for (int64_t piece = share.begin; piece < share.end; ++piece) {
        const int64_t panel = piece / count, tap = piece % count, first = panel * PANEL<A>;
        const int width = panel_vectors<A>(lanes.count, panel) * LANES<A>;
        pack_piece(packed + first * depth * count + tap * depth * width, weight + taps[tap].weight, lanes, reduction, first);
    }
}

// How many segments taps make at most.
template <class E>
INLINE int64_t most_segments(int64_t count, int64_t depth) {
    return count * ceil_div(depth, CHAIN * PAIR<E>);
}

// Segments of the taps: those that read neighbouring pixels of dense channels follow each other in the plane, and become one; none is
// longer than a chain.
template <class E>
int segments_of(const Tap* taps, int64_t count, int64_t depth, Segment* segments) {
    int found = 0;
    for (int64_t i = 0; i < count; ++i)
        for (int64_t done = 0; done < depth; done += CHAIN * PAIR<E>) {
            const int steps = int(smaller<int64_t>(CHAIN, (depth - done) / PAIR<E>));
            Segment* last = found ? segments + found - 1 : nullptr;
            if (last && last->steps + steps <= CHAIN && last->offset + int64_t(last->steps) * PAIR<E> == taps[i].plane + done)
                last->steps += steps;
            else
                segments[found++] = {taps[i].plane + done, steps};
        }
    return found;
}

}  // namespace fused_preact::FUSED_PREACT_ISA
