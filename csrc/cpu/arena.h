// Carves arrays from a workspace. Without one it only counts, so that the same code says how much is needed.
#pragma once
#include <cstddef>
#include <cstdint>

#include "vec.h"

namespace fused_preact::FUSED_PREACT_ISA {

struct Arena {
    char* data;
    size_t used = 0;

    template <class T>
    T* take(int64_t count) {
        T* p = reinterpret_cast<T*>(uintptr_t(data) + used);
        used += round_up(count * int64_t(sizeof(T)), 128);
        return p;
    }
};

// What `body` takes from an arena.
template <class Body>
INLINE size_t bytes_of(Body&& body) {
    Arena counting{nullptr};
    body(counting);
    return counting.used;
}

// The share of `total` that thread t of `threads` works on: contiguous, in order.
struct Share {
    int64_t begin, end;
    INLINE Share(int64_t first, int64_t last) : begin(first), end(last) {}
    INLINE Share(int64_t total, int t, int threads) : begin(total * t / threads), end(total * (t + 1) / threads) {}
};

}  // namespace fused_preact::FUSED_PREACT_ISA
