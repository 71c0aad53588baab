// A tile's pixels times packed weights: panel by panel, a few blocks of rows at a time, so that what comes out is still in L1 when it is used.
#pragma once
#include "mac.h"
#include "pack.h"
#include "tiles.h"

namespace fused_preact::FUSED_PREACT_ISA {

constexpr int64_t CHUNK = 8 * ROWS;

template <class E>
struct Gemm {
    const E* plane;
    const E* weights;
    const Segment* segments;
    int count;
    int64_t depth;  // of all segments, elements
    bool three_taps;

    // How often run() advances a prefetch.
    INLINE int64_t advances(int64_t lanes, int64_t pixels) const {
        if (three_taps) return ceil_div(pixels, 2 * ROWS) * count;
        return panels(lanes, PANEL<wide<E>>) * ceil_div(pixels, ROWS) * (depth / (PREFETCH_STEPS * PAIR<E>));
    }

    // finish.template operator()<NV>(first lane, first pixel, pixels, tile) for all lanes and pixels.
    template <class Finish>
    INLINE void run(int64_t lanes, const Pixels& pixels, wide<E>* tile, Prefetch& prefetch, Finish&& finish) const {
        using A = wide<E>;
        for (int64_t panel = 0; panel < panels(lanes, PANEL<A>); ++panel) {
            int64_t lane = panel * PANEL<A>;
            const E* w = weights + lane * depth;
            if (panel_vectors<A>(lanes, panel) == COLUMNS)
                chunks<COLUMNS>(w, lane, pixels, tile, prefetch, finish);
            else
                chunks<1>(w, lane, pixels, tile, prefetch, finish);
        }
    }

    template <int NV, class Finish>
    INLINE void chunks(const E* w, int64_t lane, const Pixels& pixels, wide<E>* tile, Prefetch& prefetch, Finish&& finish) const {
        using A = wide<E>;
        constexpr int W = LANES<A>;
        for (int64_t first = 0; first < pixels.count; first += CHUNK) {
            int64_t n = smaller(CHUNK, pixels.count - first);
            if constexpr (NV == 1 && W == CHANNEL_PAD) {
                if (three_taps) {
                    for (int64_t r = 0; r < n; r += 2 * ROWS)
                        three_taps_block<E, 2 * ROWS, CHANNEL_PAD>(plane, pixels.plane[first + r], segments, count, w, tile + r * W, prefetch);
                    finish.template operator()<NV>(lane, first, n, tile);
                    continue;
                }
            }
            for (int64_t r = 0; r < n; r += ROWS)
                rows_block<E, NV>(plane, pixels.plane + first + r, segments, count, w, tile + r * NV * W, true, prefetch);
            finish.template operator()<NV>(lane, first, n, tile);
        }
    }
};

// Whether three_taps_block applies: one vector of channels on both sides, three neighbouring taps a segment, whole blocks a row.
template <class E>
INLINE bool takes_three_taps(const Segment* segments, int count, int64_t lanes, int64_t pitch, int64_t columns) {
    if (LANES<wide<E>> != CHANNEL_PAD || lanes > CHANNEL_PAD || pitch != CHANNEL_PAD || columns < 1 || columns % (2 * ROWS)) return false;
    for (int i = 0; i < count; ++i)
        if (segments[i].steps * PAIR<E> != 3 * CHANNEL_PAD) return false;
    return count > 0;
}

}  // namespace fused_preact::FUSED_PREACT_ISA
