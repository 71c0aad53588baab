// Blocks one after the other; in each, warps in turns, lanes together as far as they go the same way.
#include "machine.h"

#include <algorithm>
#include <numeric>

#include "decode.h"

namespace ptxsim {
namespace {

void branch(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) { w.pc[l] = in.target; });
}

void leave(Machine& m, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) {
        if (!w.open[l].empty() || !w.groups[l].empty()) m.complain("copies left", in, m.name_of(w, l) + " exits before its cp.async have been waited for");
        w.state[l] = Lane::done;
    });
}

void barrier(Machine&, Warp& w, const Instruction&, uint32_t lanes) {
    each(lanes, [&](int l) { w.state[l] = Lane::at_barrier; });
}

void trap(Machine& m, Warp& w, const Instruction& in, uint32_t lanes) { m.stop(in, "trap by " + m.name_of(w, __builtin_ctz(lanes))); }

void nothing(Machine&, Warp&, const Instruction&, uint32_t) {}

enum BarrierResult { NONE, COUNT, AND, OR };

}  // namespace

bool decode_control(Decoder& decoder, const Statement& s, Instruction& in) {
    const std::string& root = s.root();
    if (root == "ret" || root == "exit") in.run = leave;
    if (root == "trap") in.run = trap;
    if (root == "nanosleep" || root == "griddepcontrol") in.run = nothing;
    if (root == "bra") {
        in.run = branch;
        decoder.branch(in, s.operands.back());
    }
    if (root == "bar" || root == "barrier") {
        // Only barrier 0, of all threads; bar.red also counts or combines a predicate.
        const bool reduces = s.has("red");
        if (!(s.has("sync") || reduces)) return false;
        const size_t at = reduces ? 1 : 0;
        if (s.operands.size() != (reduces ? 3 : 1) || s.operands[at] != "0") return false;
        in.run = barrier;
        if (reduces) {
            in.variant = s.has("popc") ? COUNT : s.has("and") ? AND : OR;
            in.flag = s.operands[2][0] == '!';
            Statement plain = s;
            if (in.flag) plain.operands[2] = s.operands[2].substr(1);
            decoder.to(in, s.operands[0]);
            decoder.from(in, plain, 2, {'p', 1});
        }
    }
    return in.run;
}

Machine::Machine(const Kernel& k, const Config& c, Counters& counted, Regions& r, Dim g, Dim b, size_t dynamic_shared, uint32_t launch_, std::vector<uint8_t> p)
    : kernel(k), config(c), counters(counted), regions(r), grid(g), block(b), launch(launch_), parameters(std::move(p)),
      shared(k.dynamic_shared ? dynamic_shared_offset(k) + dynamic_shared : k.shared_bytes), shared_cells(shared.size()),
      warps(size_t(b.count() + LANES - 1) / LANES), order(warps.size() * LANES), state_(c.seed * 0x9E3779B97F4A7C15ull + 1) {
    for (size_t i = 0; i < warps.size(); ++i) {
        Warp& w = warps[i];
        w.id = int(i);
        w.values.resize(size_t(k.registers) * LANES);
        for (std::vector<uint8_t>& local : w.local) local.resize(k.local_bytes);
        for (const Constant& constant : k.constants) std::fill_n(w.reg(constant.reg), LANES, constant.value);
    }
    for (const SpecialRegister& special : k.specials)
        for (Warp& w : warps)
            for (int l = 0; l < LANES; ++l) {
                const unsigned t = unsigned(w.thread(l));
                const std::map<std::string, unsigned> values{
                    {"%tid.x", t % b.x}, {"%tid.y", t / b.x % b.y}, {"%tid.z", t / b.x / b.y}, {"%ntid.x", b.x}, {"%ntid.y", b.y}, {"%ntid.z", b.z},
                    {"%nctaid.x", g.x}, {"%nctaid.y", g.y}, {"%nctaid.z", g.z}, {"%laneid", unsigned(l)}, {"%warpid", unsigned(w.id)},
                    {"%dynamic_smem_size", unsigned(dynamic_shared)}, {"%ctaid.x", 0}, {"%ctaid.y", 0}, {"%ctaid.z", 0}};
                const auto value = values.find(special.name);
                if (value == values.end()) throw Unsupported("register " + special.name);
                w.reg(special.reg)[l] = value->second;
            }
}

uint64_t Machine::random() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    return state_ ^= state_ << 17;
}

void Machine::start(long id) {
    constexpr uint8_t POISON = 0xFF;  // NaN in every float
    block_id = int(id);
    barriers = 1;
    std::fill(shared.begin(), shared.end(), POISON);
    std::fill(shared_cells.begin(), shared_cells.end(), Cell());
    std::fill(order.begin(), order.end(), ThreadOrder());
    for (Warp& w : warps) {
        w.barriers = 0;
        for (int l = 0; l < LANES; ++l) {
            w.pc[l] = 0;
            w.state[l] = w.thread(l) < block.count() ? Lane::runs : Lane::done;
            w.open[l].clear();
            w.groups[l].clear();
            std::fill(w.local[l].begin(), w.local[l].end(), POISON);
        }
        for (const SpecialRegister& special : kernel.specials)
            if (special.name.compare(0, 7, "%ctaid.") == 0) {
                const long values[] = {id % grid.x, id / grid.x % grid.y, id / grid.x / grid.y};
                std::fill_n(w.reg(special.reg), LANES, uint64_t(values[special.name.back() - 'x']));
            }
    }
}

// The lanes that execute a collective now: all of its mask, or none yet.
uint32_t Machine::gathered(Warp& w, const Instruction& in, int pc, uint32_t lanes) {
    const long threads = std::min<long>(LANES, block.count() - long(w.id) * LANES);
    const uint32_t exist = threads == LANES ? ~0u : (1u << threads) - 1;
    const uint32_t mask = exist & (in.masked ? uint32_t(w.reg(in.from.back())[__builtin_ctz(lanes)]) : ~0u);
    uint32_t here = lanes;
    for (int l = 0; l < LANES; ++l) {
        if (w.state[l] == Lane::at_collective && w.pc[l] == pc) here |= 1u << l;
        if (mask >> l & 1 && w.state[l] == Lane::done) stop(in, "warp operation needs lane " + std::to_string(l) + " of warp " + std::to_string(w.id) + ", which has exited");
    }
    const bool complete = (here & mask) == mask;
    each(complete ? mask : lanes, [&](int l) { w.state[l] = complete ? Lane::runs : Lane::at_collective; });
    return complete ? mask : 0;
}

// The lanes that are furthest behind go on together; false when none can.
bool Machine::step(Warp& w) {
    const int end = int(kernel.code.size());
    int pc = end, waiting = -1;
    for (int l = 0; l < LANES; ++l) {
        if (w.state[l] == Lane::runs) pc = std::min(pc, w.pc[l]);
        if (w.state[l] == Lane::at_collective) waiting = w.pc[l];
    }
    if (pc == end) {
        if (waiting >= 0) stop(kernel.code[waiting], "divergent warp operation: only some lanes of its mask in warp " + std::to_string(w.id) + " can reach it");
        return false;
    }
    uint32_t lanes = 0;
    for (int l = 0; l < LANES; ++l) lanes |= uint32_t(w.state[l] == Lane::runs && w.pc[l] == pc) << l;
    const Instruction& in = kernel.code[pc];
    if (in.collective && !(lanes = gathered(w, in, pc, lanes))) return true;
    uint32_t active = lanes;
    if (in.predicate >= 0) {
        active = 0;
        each(lanes, [&](int l) { active |= uint32_t((get<uint8_t>(w.reg(in.predicate), l) != 0) != in.negated) << l; });
    }
    each(lanes, [&](int l) { w.pc[l] = pc + 1; });
    ++counters.instructions;
    if (active) in.run(*this, w, in, active);
    return true;
}

// When no warp can go on: lets the threads at a barrier pass. False when there are none.
bool Machine::release_barrier() {
    long waiting = 0, gone = 0, yes = 0;
    int pc = -1;
    bool different = false;
    Knowledge together;
    auto at_barrier = [&](auto&& body) {
        for (Warp& w : warps)
            for (int l = 0; l < LANES; ++l)
                if (w.state[l] == Lane::at_barrier) body(w, l);
    };
    for (const Warp& w : warps)
        for (int l = 0; l < LANES; ++l) gone += w.thread(l) < block.count() && w.state[l] == Lane::done;
    at_barrier([&](Warp& w, int l) {
        ++waiting;
        different = different || (pc >= 0 && w.pc[l] != pc);
        pc = w.pc[l];
        learn(together, order[w.thread(l)].knowledge);
    });
    if (!waiting) return false;
    const Instruction& in = kernel.code[pc - 1];
    if (gone) complain("barrier", in, "barrier reached by " + std::to_string(waiting) + " of " + std::to_string(block.count()) + " threads, the others have exited");
    if (different) complain("barrier", in, "threads of a block wait at different barriers");
    if (in.variant != NONE && !different) {
        auto vote = [&](Warp& w, int l) { return (get<uint8_t>(w.reg(in.from[0]), l) != 0) != in.flag; };
        at_barrier([&](Warp& w, int l) { yes += vote(w, l); });
        at_barrier([&](Warp& w, int l) {
            if (in.variant == COUNT)
                put<uint32_t>(w.reg(in.to[0]), l, uint32_t(yes));
            else
                put<uint8_t>(w.reg(in.to[0]), l, in.variant == AND ? yes == waiting : yes > 0);
        });
    }
    ++barriers;
    at_barrier([&](Warp& w, int l) {
        if (!together.empty()) order[w.thread(l)].knowledge = together;
        w.state[l] = Lane::runs;
    });
    return true;
}

void Machine::run() {
    constexpr long MOST_STEPS_RANDOM = 64;
    std::vector<long> blocks(size_t(grid.count()));
    std::iota(blocks.begin(), blocks.end(), 0);
    if (config.order == Order::reverse) std::reverse(blocks.begin(), blocks.end());
    for (size_t i = blocks.size() - 1; config.order == Order::random && i > 0; --i) std::swap(blocks[i], blocks[random() % (i + 1)]);
    for (const long id : blocks) {
        start(id);
        do {
            for (bool any = true; any;) {
                any = false;
                const bool at_random = config.order == Order::random;
                // A whole round without a step means that all warps wait, whichever order they were asked in.
                const size_t first = at_random ? random() % warps.size() : 0;
                for (size_t i = 0; i < warps.size(); ++i) {
                    const size_t which = (first + i) % warps.size();
                    Warp& w = warps[config.order == Order::reverse ? warps.size() - 1 - which : which];
                    for (long steps = at_random ? long(random() % MOST_STEPS_RANDOM) + 1 : -1; steps != 0 && step(w); --steps) any = true;
                }
            }
        } while (release_barrier());
    }
    std::string all;
    for (const std::string& message : messages) all += message;
    if (!all.empty()) throw Violation(all);
}

}  // namespace ptxsim
