// Layers of many weights (tiles.h). Packed whole, they would be read again for every tile, from further away than L2. So all threads work on
// one tile, whose planes they fill together, and share out its panels; each packs one tap of a panel and uses it for all pixels at once.
#pragma once
#include "gemm.h"

namespace fused_preact::FUSED_PREACT_ISA {

// A tile's pixels are cut into parts, so that panels can be shared out evenly; what is summed over pixels is summed part by part.
struct Parts {
    int64_t pixels, count;

    INLINE int64_t begin(int64_t part) const { return smaller(pixels, ceil_div(pixels, ROWS) * part / count * ROWS); }
    INLINE int64_t of(int64_t part) const { return begin(part + 1) - begin(part); }
};

template <class S, class E>
struct WideGemm {
    using A = wide<E>;

    const S* weight;
    Side lanes, reduction;
    const Tap* taps;
    int64_t count;
    const Segment* segments;  // of one tap
    int segment_count;
    E* packed;  // of one tap of a panel
    A* tile;    // of all pixels of a tile

    // finish.template operator()<NV>(first lane, part, first pixel, pixels, tile) for thread t's share of all lanes and parts.
    template <class Finish>
    INLINE void run(const E* planes, const Pixels& pixels, Parts parts, int t, int threads, Finish&& finish) const {
        const Share units(panels(lanes.count, PANEL<A>) * parts.count, t, threads);
        for (int64_t unit = units.begin, end; unit < units.end; unit = end) {
            const int64_t panel = unit / parts.count, first = unit % parts.count;
            end = smaller((panel + 1) * parts.count, units.end);
            if (panel_vectors<A>(lanes.count, panel) == COLUMNS)
                one<COLUMNS>(planes, pixels, parts, panel * PANEL<A>, first, first + end - unit, end < units.end, finish);
            else
                one<1>(planes, pixels, parts, panel * PANEL<A>, first, first + end - unit, end < units.end, finish);
        }
    }

  private:
    // A tap of a panel, where its channels lie side by side.
    INLINE void fetch(Prefetch& prefetch, const Tap& tap, int64_t lane) const {
        const S* from = weight + tap.weight + lane * lanes.stride;
        const int64_t filled = smaller<int64_t>(PANEL<A>, lanes.count - lane);
        if (lanes.stride == 1)
            prefetch.add(from, filled * sizeof(S), reduction.count, reduction.stride * sizeof(S));
        else if (reduction.stride == 1)
            prefetch.add(from, reduction.count * sizeof(S), filled, lanes.stride * sizeof(S));
    }

    template <int NV, class Finish>
    INLINE void one(const E* planes, const Pixels& pixels, Parts parts, int64_t lane, int64_t first_part, int64_t end_part, bool more, Finish&& finish) const {
        constexpr int W = LANES<A>;
        const int64_t first = parts.begin(first_part), end = parts.begin(end_part);
        if (first == end) return;
        if (count == 0) clear(tile, round_up(end - first, ROWS) * NV * W);
        for (int64_t i = 0; i < count; ++i) {
            pack_piece(packed, weight + taps[i].weight, lanes, reduction, lane);
            Prefetch prefetch;
            if (i + 1 < count)
                fetch(prefetch, taps[i + 1], lane);
            else if (more)
                fetch(prefetch, taps[0], lane + PANEL<A>);
            prefetch.spread(ceil_div(end - first, ROWS) * (padded(reduction.count) / (PREFETCH_STEPS * PAIR<E>)));
            for (int64_t r = first; r < end; r += ROWS)
                rows_block<E, NV>(planes + taps[i].plane, pixels.plane + r, segments, segment_count, packed, tile + (r - first) * NV * W, i == 0, prefetch);
        }
        for (int64_t part = first_part; part < end_part; ++part)
            for (int64_t at = parts.begin(part); at < parts.begin(part + 1); at += CHUNK)
                finish.template operator()<NV>(lane, part, at, smaller(CHUNK, parts.begin(part + 1) - at), tile + (at - first) * NV * W);
    }
};

}  // namespace fused_preact::FUSED_PREACT_ISA
