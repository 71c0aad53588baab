// The next tile's inputs, fetched into L2 while this tile computes: a few lines at a time, since a burst would fill the queue of misses.
#pragma once
#include "vec.h"

namespace fused_preact::FUSED_PREACT_ISA {

// The micro-kernels advance once in so many steps.
constexpr int PREFETCH_STEPS = 8;

class Prefetch {
  public:
    INLINE void add(const void* p, int64_t bytes, int64_t rows = 1, int64_t pitch = 0) {
        if (!p || bytes <= 0 || rows <= 0 || count_ == STREAMS) return;
        const int64_t lines = ceil_div(bytes, LINE);
        streams_[count_++] = {static_cast<const char*>(p), lines, lines, rows, pitch - lines * LINE};
        lines_ += lines * rows;
    }
    // Everything that was added goes into so many advances.
    INLINE void spread(int64_t advances) { step_ = ceil_div(lines_, larger<int64_t>(advances, 1)); }

    INLINE void advance() {
        for (int64_t i = 0; i < step_ && current_ < count_; ++i) {
            Stream& s = streams_[current_];
            __builtin_prefetch(s.at, 0, 2);
            s.at += LINE;
            if (--s.left == 0) {
                s.at += s.skip;
                s.left = s.lines;
                if (--s.rows == 0) ++current_;
            }
        }
    }

  private:
    static constexpr int STREAMS = 5, LINE = 64;
    struct Stream {
        const char* at;
        int64_t left, lines, rows, skip;
    };
    Stream streams_[STREAMS];
    int64_t lines_ = 0, step_ = 0;
    int count_ = 0, current_ = 0;
};

}  // namespace fused_preact::FUSED_PREACT_ISA
