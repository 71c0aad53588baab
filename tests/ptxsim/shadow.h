// Who touched a byte last, and whether that was ordered before who touches it now.
//
// Within a block two accesses are ordered by a barrier between them, within a warp also by a __syncwarp. Between blocks nothing orders them,
// except that what a thread has released (a fence, then an atomic on an integer) comes before what follows an atomic on the same integer.
#pragma once
#include <algorithm>
#include <map>
#include <vector>

#include "types.h"

namespace ptxsim {

struct Access {
    int block = -1, thread = -1;
    uint32_t barriers = 0, warp_barriers = 0;  // passed so far

    bool happened() const { return thread >= 0; }
};

// One byte. Of the reads since the last write the last two of different warps are kept: two are enough to find one that a write races with.
struct Cell {
    Access write, read, other_read;
    uint32_t launch = 0;
    bool initialised = false, awaits_copy = false;
};

// What a thread knows of another block: all that it did before so many barriers, and all of some threads up to their fence.
struct Known {
    uint32_t barriers = 0;
    std::map<int, uint32_t> threads;
};
using Knowledge = std::map<int, Known>;

inline void learn(Knowledge& knowledge, const Knowledge& more) {
    for (const auto& [block, known] : more) {
        Known& own = knowledge[block];
        own.barriers = std::max(own.barriers, known.barriers);
        for (const auto& [thread, barriers] : known.threads) own.threads[thread] = std::max(own.threads[thread], barriers);
    }
}

inline bool known(const Knowledge& knowledge, const Access& access) {
    const auto found = knowledge.find(access.block);
    if (found == knowledge.end()) return false;
    if (access.barriers < found->second.barriers) return true;
    const auto thread = found->second.threads.find(access.thread);
    return thread != found->second.threads.end() && access.barriers <= thread->second;
}

// Memory that a kernel may touch.
struct Region {
    const char* data;
    size_t bytes;
    std::string name;
    bool writable;
    std::vector<Cell> cells;  // of writable ones
    std::map<size_t, Knowledge> released;  // by atomics, at an offset
};

// By address. Regions do not overlap.
class Regions {
  public:
    void add(const void* data, size_t bytes, const char* name, bool writable);
    void clear() { regions_.clear(); }
    // What was released is forgotten: launches follow one another.
    void begin_launch();
    // The region that the address is in, or the one before it; null if there is none.
    Region* at(uint64_t address);

  private:
    std::map<uint64_t, Region> regions_;
};

}  // namespace ptxsim
