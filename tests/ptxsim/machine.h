// The state of a running block, and what instructions do to it.
#pragma once
#include <deque>
#include <set>

#include "program.h"
#include "shadow.h"

namespace ptxsim {

// A cp.async that has not arrived. `copied` bytes come from memory, the rest up to `bytes` is zero.
struct Copy {
    size_t to;
    const uint8_t* from;
    unsigned bytes, copied;
};

enum class Lane : uint8_t { runs, at_barrier, at_collective, done };

struct Warp {
    int id = 0;
    std::vector<uint64_t> values;  // of each register, all lanes
    int pc[LANES];
    Lane state[LANES];
    uint32_t barriers = 0;  // __syncwarp passed
    std::vector<Copy> open[LANES];
    std::deque<std::vector<Copy>> groups[LANES];
    std::vector<uint8_t> local[LANES];

    uint64_t* reg(int i) { return &values[size_t(i) * LANES]; }
    int thread(int lane) const { return id * LANES + lane; }
};

struct ThreadOrder {
    Knowledge knowledge;
    bool fenced = false;
    Knowledge at_fence;  // what it releases with its next atomic
};

struct Machine {
    const Kernel& kernel;
    const Config config;
    Counters& counters;
    Regions& regions;
    const Dim grid, block;
    const uint32_t launch;
    std::vector<uint8_t> parameters, shared;
    std::vector<Cell> shared_cells;
    std::vector<Warp> warps;
    std::vector<ThreadOrder> order;
    int block_id = 0;
    uint32_t barriers = 1;  // that the block has passed
    std::vector<std::string> messages;

    Machine(const Kernel&, const Config&, Counters&, Regions&, Dim grid, Dim block, size_t dynamic_shared, uint32_t launch, std::vector<uint8_t> parameters);

    // All blocks. Throws a Violation with all that was wrong.
    void run();

    // The host address of an access that has been checked. Atomics and the copies of cp.async are marked as such.
    enum class Kind { read, write, atomic, copy };
    uint8_t* memory(Space space, uint64_t address, unsigned bytes, Kind kind, Warp& w, int lane, const Instruction& in);

    void count_shared(const uint64_t* addresses, int64_t offset, uint32_t lanes, unsigned bytes);
    void count_global(const uint64_t* addresses, int64_t offset, uint32_t lanes, unsigned bytes);

    // Fences and atomics on integers, for the order between blocks.
    void fence(Warp& w, int lane);
    void release_and_acquire(Warp& w, int lane, uint64_t address);

    // Once for each instruction and kind of fault.
    void complain(const char* kind, const Instruction& in, const std::string& what);
    [[noreturn]] void stop(const Instruction& in, const std::string& what);
    std::string name_of(int thread, int of_block) const;
    std::string name_of(const Warp& w, int lane) const { return name_of(w.thread(lane), block_id); }

    uint64_t random();

  private:
    uint64_t state_;
    std::set<std::pair<std::string, const Instruction*>> said_;

    void start(long block);
    bool step(Warp& w);
    uint32_t gathered(Warp& w, const Instruction& in, int pc, uint32_t lanes);
    bool release_barrier();
    std::string place(const Instruction& in) const;
    bool ordered(const Access& before, const Warp& w, int thread) const;
    void mark(Cell& cell, const std::string& where, size_t offset, Kind kind, Warp& w, int lane, const Instruction& in);
    uint8_t* shared_memory(uint64_t address, unsigned bytes, Kind kind, Warp& w, int lane, const Instruction& in);
    uint8_t* global_memory(uint64_t address, unsigned bytes, Kind kind, Warp& w, int lane, const Instruction& in);
};

// body(lane) for the lanes of a mask.
template <class Body>
inline void each(uint32_t lanes, Body&& body) {
    for (; lanes; lanes &= lanes - 1) body(__builtin_ctz(lanes));
}

template <class T>
inline T get(const uint64_t* reg, int lane) {
    T value;
    memcpy(&value, reg + lane, sizeof value);
    return value;
}

template <class T>
inline void put(uint64_t* reg, int lane, T value) {
    reg[lane] = 0;
    memcpy(reg + lane, &value, sizeof value);
}

}  // namespace ptxsim
