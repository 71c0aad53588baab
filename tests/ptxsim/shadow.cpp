// Checks of memory accesses.
#include <algorithm>

#include "machine.h"

namespace ptxsim {

namespace {

const std::string SHARED_NAME = "shared";

// The 4-byte words that lanes touch, each once, in order.
class Words {
  public:
    Words(const uint64_t* addresses, int64_t offset, uint32_t lanes, unsigned bytes) {
        constexpr unsigned WORD = 4;
        each(lanes, [&](int lane) {
            for (unsigned b = 0; b < bytes; b += WORD) words_[count_++] = (addresses[lane] + offset + b) / WORD;
        });
        std::sort(words_, words_ + count_);
        count_ = int(std::unique(words_, words_ + count_) - words_);
    }
    const uint64_t* begin() const { return words_; }
    const uint64_t* end() const { return words_ + count_; }

  private:
    uint64_t words_[LANES * 8];  // of up to 32 bytes a lane
    int count_ = 0;
};

}  // namespace

void Regions::add(const void* data, size_t bytes, const char* name, bool writable) {
    Region region{static_cast<const char*>(data), bytes, name, writable, {}, {}};
    if (writable) region.cells.resize(bytes);
    regions_[uint64_t(data)] = std::move(region);
}

void Regions::begin_launch() {
    for (auto& [address, region] : regions_) region.released.clear();
}

Region* Regions::at(uint64_t address) {
    const auto after = regions_.upper_bound(address);
    return after == regions_.begin() ? nullptr : &std::prev(after)->second;
}

std::string Machine::name_of(int thread, int of_block) const {
    const std::string where = of_block == block_id ? "" : "block " + std::to_string(of_block) + " ";
    return where + "thread " + std::to_string(thread) + " (warp " + std::to_string(thread / LANES) + " lane " + std::to_string(thread % LANES) + ")";
}

std::string Machine::place(const Instruction& in) const { return ", source line " + std::to_string(in.line) + " [" + in.text + "]\n"; }

void Machine::complain(const char* kind, const Instruction& in, const std::string& what) {
    constexpr size_t MOST = 30;
    if (said_.insert({kind, &in}).second && messages.size() < MOST) messages.push_back(kernel.name + ": " + what + place(in));
}

void Machine::stop(const Instruction& in, const std::string& what) {
    std::string all;
    for (const std::string& message : messages) all += message;
    throw Violation(all + kernel.name + ": " + what + place(in));
}

bool Machine::ordered(const Access& before, const Warp& w, int thread) const {
    if (before.block != block_id) return known(order[thread].knowledge, before);
    if (before.thread == thread || before.barriers != barriers) return true;
    return before.thread / LANES == w.id && before.warp_barriers != w.barriers;
}

void Machine::mark(Cell& cell, const std::string& where, size_t offset, Kind kind, Warp& w, int lane, const Instruction& in) {
    const int thread = w.thread(lane);
    const bool writes = kind != Kind::read;
    auto byte = [&] { return where + " byte " + std::to_string(offset); };
    if (cell.awaits_copy && kind != Kind::copy)
        return complain("copy", in, (writes ? "write to " : "read of ") + byte() + " by " + name_of(w, lane) + " before a cp.async into it of " +
                                        name_of(cell.write.thread, block_id) + " has been waited for");
    auto check = [&](const char* what, const Access& before) {
        if (before.happened() && !ordered(before, w, thread))
            complain("race", in, std::string("race (") + what + ") on " + byte() + ": " + name_of(before.thread, before.block) + ", then " + name_of(w, lane) +
                                     ", with nothing that orders them");
    };
    check(writes ? "write, write" : "write, read", cell.write);
    const Access now{block_id, thread, barriers, w.barriers};
    if (writes) {
        check("read, write", cell.read);
        check("read, write", cell.other_read);
        cell.write = now;
        cell.initialised = true;
    } else {
        if (cell.read.happened() && cell.read.thread / LANES != w.id) cell.other_read = cell.read;
        cell.read = now;
    }
}

uint8_t* Machine::shared_memory(uint64_t address, unsigned bytes, Kind kind, Warp& w, int lane, const Instruction& in) {
    const uint64_t offset = (address & 0xFFFFFFFFu) - SHARED_BASE;
    if (offset > shared.size() || offset + bytes > shared.size())
        stop(in, std::string("shared ") + (kind == Kind::read ? "read" : "write") + " out of bounds by " + name_of(w, lane) + " at offset " +
                     std::to_string(int64_t(offset)) + " of " + std::to_string(shared.size()) + " bytes");
    for (unsigned i = 0; config.checks && i < bytes; ++i) {
        Cell& cell = shared_cells[offset + i];
        if (kind == Kind::read && !cell.initialised && !cell.awaits_copy)
            complain("uninitialised", in, "read of uninitialised shared byte " + std::to_string(offset + i) + " by " + name_of(w, lane));
        if (kind != Kind::atomic) mark(cell, SHARED_NAME, offset + i, kind, w, lane, in);
        if (kind == Kind::copy) cell.awaits_copy = true;
    }
    return &shared[offset];
}

uint8_t* Machine::global_memory(uint64_t address, unsigned bytes, Kind kind, Warp& w, int lane, const Instruction& in) {
    Region* region = regions.at(address);
    const size_t offset = region ? address - uint64_t(region->data) : 0;
    const bool writes = kind == Kind::write || kind == Kind::atomic;
    if (!region || offset + bytes > region->bytes) {
        const std::string past = region ? ", " + std::to_string(offset + bytes - region->bytes) + " bytes past the end of '" + region->name + "'" : "";
        stop(in, std::string("global ") + (writes ? "write" : "read") + " out of bounds, of " + std::to_string(bytes) + " bytes by " + name_of(w, lane) +
                     " of block " + std::to_string(block_id) + past);
    }
    if (writes && !region->writable) stop(in, "write to '" + region->name + "', which is read-only, by " + name_of(w, lane));
    for (unsigned i = 0; config.checks && region->writable && kind != Kind::atomic && i < bytes; ++i) {
        Cell& cell = region->cells[offset + i];
        if (cell.launch != launch) cell = Cell{{}, {}, {}, launch, true, false};
        mark(cell, region->name, offset + i, kind == Kind::copy ? Kind::read : kind, w, lane, in);
    }
    return reinterpret_cast<uint8_t*>(address);
}

uint8_t* Machine::memory(Space space, uint64_t address, unsigned bytes, Kind kind, Warp& w, int lane, const Instruction& in) {
    if (space == Space::generic) {
        space = address >= SHARED_WINDOW ? Space::shared : address >= LOCAL_WINDOW ? Space::local : Space::global;
        if (space == Space::shared) address -= SHARED_WINDOW;
        if (space == Space::local) address -= LOCAL_WINDOW;
    }
    if (address % bytes)
        stop(in, "misaligned " + std::string(kind == Kind::read ? "read" : "write") + " of " + std::to_string(bytes) + " bytes by " + name_of(w, lane));
    switch (space) {
        case Space::shared:
            return shared_memory(address, bytes, kind, w, lane, in);
        case Space::local:
            if (address + bytes > w.local[lane].size()) stop(in, "local access out of bounds by " + name_of(w, lane));
            return &w.local[lane][address];
        case Space::parameter:
            if (address + bytes > parameters.size()) stop(in, "parameter out of bounds");
            return &parameters[address];
        default:
            return global_memory(address, bytes, kind, w, lane, in);
    }
}

void Machine::fence(Warp& w, int lane) {
    const int thread = w.thread(lane);
    ThreadOrder& own = order[thread];
    own.fenced = true;
    own.at_fence = own.knowledge;
    // Before its last barrier the whole block, after it this thread alone.
    Known& self = own.at_fence[block_id];
    self.barriers = std::max(self.barriers, barriers);
    self.threads[thread] = barriers;
}

void Machine::release_and_acquire(Warp& w, int lane, uint64_t address) {
    ThreadOrder& own = order[w.thread(lane)];
    Region* region = regions.at(address);
    Knowledge& released = region->released[address - uint64_t(region->data)];
    learn(own.knowledge, released);
    if (own.fenced) learn(released, own.at_fence);
    own.fenced = false;
}

void Machine::count_shared(const uint64_t* addresses, int64_t offset, uint32_t lanes, unsigned bytes) {
    // A wavefront serves 128 bytes: a quarter of a warp with 16 bytes each, half with 8. Lanes that want the same word share it.
    constexpr unsigned BANKS = 32;
    const int group = bytes == 16 ? 8 : bytes == 8 ? 16 : 32;
    for (int first = 0; first < LANES; first += group) {
        const uint32_t own = lanes & uint32_t(((uint64_t(1) << group) - 1) << first);
        Words words(addresses, offset, own, bytes);
        int in_bank[BANKS] = {}, most = 0;
        for (const uint64_t word : words) most = std::max(most, ++in_bank[word % BANKS]);
        counters.shared_wavefronts += most;
        counters.shared_ideal += most > 0;
    }
}

void Machine::count_global(const uint64_t* addresses, int64_t offset, uint32_t lanes, unsigned bytes) {
    constexpr unsigned SECTOR_WORDS = 8;
    if (!lanes) return;
    const Region* region = regions.at(addresses[__builtin_ctz(lanes)] + offset);
    if (!region) return;
    const Words words(addresses, offset, lanes, bytes);
    long sectors = 0, count = 0;
    uint64_t last = ~uint64_t(0);
    for (const uint64_t word : words) {
        sectors += word / SECTOR_WORDS != last;
        last = word / SECTOR_WORDS;
        ++count;
    }
    Traffic& traffic = counters.global[region->name];
    traffic.sectors += sectors;
    traffic.ideal += (count + SECTOR_WORDS - 1) / SECTOR_WORDS;
}

}  // namespace ptxsim
