// cp.async: copies to shared memory that arrive when they are waited for.
#include <algorithm>

#include "decode.h"
#include "machine.h"

namespace ptxsim {
namespace {

struct Wanted {
    unsigned bytes, copied;
};

Wanted wanted(Warp& w, const Instruction& in, int lane) {
    const unsigned bytes = get<uint32_t>(w.reg(in.from[2]), lane);
    return {bytes, in.from.size() > 3 ? std::min(bytes, get<uint32_t>(w.reg(in.from[3]), lane)) : bytes};
}

void arrive(Machine& m, const Copy& copy) {
    memcpy(&m.shared[copy.to], copy.from, copy.copied);
    memset(&m.shared[copy.to] + copy.copied, 0, copy.bytes - copy.copied);
}

void start(Machine& m, Warp& w, const Instruction& in, uint32_t lanes) {
    uint32_t reading = 0;
    each(lanes, [&](int l) { reading |= uint32_t(wanted(w, in, l).copied > 0) << l; });
    const unsigned bytes = wanted(w, in, __builtin_ctz(lanes)).bytes;
    m.count_global(w.reg(in.from[1]), in.second_offset, reading, bytes);
    m.count_shared(w.reg(in.from[0]), in.offset, lanes, bytes);
    each(lanes, [&](int l) {
        const Wanted size = wanted(w, in, l);
        const uint64_t source = w.reg(in.from[1])[l] + in.second_offset;
        if (source % size.bytes) m.stop(in, "misaligned source of a cp.async of " + std::to_string(size.bytes) + " bytes by " + m.name_of(w, l));
        // Where less than all is read, byte by byte: the rest may lie outside.
        if (size.copied == size.bytes)
            m.memory(Space::global, source, size.bytes, Machine::Kind::copy, w, l, in);
        else
            for (unsigned i = 0; i < size.copied; ++i) m.memory(Space::global, source + i, 1, Machine::Kind::copy, w, l, in);
        uint8_t* to = m.memory(Space::shared, w.reg(in.from[0])[l] + in.offset, size.bytes, Machine::Kind::copy, w, l, in);
        const Copy copy{size_t(to - m.shared.data()), reinterpret_cast<const uint8_t*>(source), size.bytes, size.copied};
        if (m.config.copies_at_once) arrive(m, copy);
        w.open[l].push_back(copy);
    });
}

void commit(Machine&, Warp& w, const Instruction&, uint32_t lanes) {
    each(lanes, [&](int l) {
        w.groups[l].push_back(std::move(w.open[l]));
        w.open[l].clear();
    });
}

// Until at most `offset` groups are on their way; `flag`: all, committed or not.
void wait(Machine& m, Warp& w, const Instruction& in, uint32_t lanes) {
    if (in.flag) commit(m, w, in, lanes);
    each(lanes, [&](int l) {
        for (; w.groups[l].size() > (in.flag ? 0 : size_t(in.offset)); w.groups[l].pop_front())
            for (const Copy& copy : w.groups[l].front()) {
                if (!m.config.copies_at_once) arrive(m, copy);
                for (unsigned i = 0; m.config.checks && i < copy.bytes; ++i) {
                    Cell& cell = m.shared_cells[copy.to + i];
                    cell.awaits_copy = false;
                    cell.write = {m.block_id, w.thread(l), m.barriers, w.barriers};
                }
            }
    });
}

}  // namespace

bool decode_copy(Decoder& decoder, const Statement& s, Instruction& in) {
    if (s.root() != "cp" || s.op.size() < 3 || s.op[1] != "async") return false;
    if (s.has("commit_group")) {
        in.run = commit;
    } else if (s.has("wait_group")) {
        in.run = wait;
        in.offset = atoi(s.operands[0].c_str());
    } else if (s.has("wait_all")) {
        in.run = wait;
        in.flag = true;
    } else if ((s.op[2] == "ca" || s.op[2] == "cg") && s.operands.size() >= 3) {
        in.run = start;
        decoder.address(in, s.operands[0], in.offset);
        decoder.address(in, s.operands[1], in.second_offset);
        decoder.from(in, s, 2, {'u', 4});
    }
    return in.run;
}

}  // namespace ptxsim
