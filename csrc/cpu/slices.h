// Who computes which tiles. Threads are not equally fast: a neighbour on the core, a smaller core. So tiles are cut into slices, more than
// there are threads; each thread begins with its share of them, in order, and who is done takes the last ones of another.
//
// What a slice adds up stays its own, and slices are merged in their order, so the bits do not depend on who took which.
#pragma once
#include "arena.h"

namespace fused_preact::FUSED_PREACT_ISA {

constexpr int64_t SLICES_PER_THREAD = 8, PARTIALS_BYTES = 1 << 20;

class Slices {
  public:
    int64_t count;

    // partial_bytes: what a slice adds up in; all of them together should stay in L2.
    Slices(Arena& arena, int64_t tiles, int64_t partial_bytes, int threads) : tiles_(tiles), threads_(threads), left_(arena.take<uint64_t>(threads)) {
        const int64_t each = larger<int64_t>(1, smaller(SLICES_PER_THREAD, PARTIALS_BYTES / larger<int64_t>(1, partial_bytes * threads)));
        count = smaller(tiles, threads == 1 ? 1 : each * threads);
    }

    // Before every parallel region.
    void reset() {
        for (int t = 0; t < threads_; ++t) {
            const Share share(count, t, threads_);
            left_[t] = uint64_t(share.begin) << 32 | uint64_t(share.end);
        }
    }

    // For each slice that thread t gets: partial = open(slice), body(partial, tile, the tile after it or -1) for its tiles, close(partial).
    template <class Open, class Body, class Close>
    INLINE void work(int t, Open&& open, Body&& body, Close&& close) {
        for (int64_t slice = claim(t), following = -1; slice >= 0; slice = following < 0 ? claim(t) : following) {
            const Share share(tiles_, int(slice), int(count));
            auto partial = open(slice);
            for (int64_t i = share.begin; i < share.end; ++i) {
                const bool more = i + 1 < share.end;
                // Of its own share: what another thread may still begin itself is taken only when there is nothing else to do.
                if (!more) following = take(left_[t], true);
                body(partial, i, more ? i + 1 : following < 0 ? -1 : Share(tiles_, int(following), int(count)).begin);
            }
            close(partial);
        }
    }

  private:
    int64_t tiles_;
    int threads_;
    uint64_t* left_;  // of each thread's share: first << 32 | end

    int64_t claim(int t) {
        int64_t slice = take(left_[t], true);
        for (int other = 1; slice < 0 && other < threads_; ++other) slice = take(left_[(t + other) % threads_], false);
        return slice;
    }

    static int64_t take(uint64_t& left, bool first) {
        uint64_t seen = __atomic_load_n(&left, __ATOMIC_RELAXED);
        for (;;) {
            const uint64_t begin = seen >> 32, end = seen & 0xffffffff;
            if (begin >= end) return -1;
            const uint64_t rest = first ? (begin + 1) << 32 | end : begin << 32 | (end - 1);
            if (__atomic_compare_exchange_n(&left, &seen, rest, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return int64_t(first ? begin : end - 1);
        }
    }
};

}  // namespace fused_preact::FUSED_PREACT_ISA
