// Loads, stores, atomics, fences.
#include <algorithm>

#include "decode.h"
#include "machine.h"

namespace ptxsim {
namespace {

void count(Machine& m, Warp& w, const Instruction& in, uint32_t lanes) {
    const unsigned bytes = unsigned(in.bytes * in.vector);
    const uint64_t* addresses = w.reg(in.from[0]);
    if (in.space == Space::shared) m.count_shared(addresses, in.offset, lanes, bytes);
    if (in.space == Space::global) m.count_global(addresses, in.offset, lanes, bytes);
}

void load(Machine& m, Warp& w, const Instruction& in, uint32_t lanes) {
    count(m, w, in, lanes);
    const unsigned bytes = unsigned(in.bytes * in.vector);
    each(lanes, [&](int l) {
        const uint8_t* p = m.memory(in.space, w.reg(in.from[0])[l] + in.offset, bytes, Machine::Kind::read, w, l, in);
        for (int i = 0; i < in.vector; ++i) {
            uint64_t value = 0;
            memcpy(&value, p + i * in.bytes, in.bytes);
            if (in.is_signed && in.bytes < 8) value = uint64_t(int64_t(value << (64 - 8 * in.bytes)) >> (64 - 8 * in.bytes));
            w.reg(in.to[i])[l] = value;
        }
    });
}

void store(Machine& m, Warp& w, const Instruction& in, uint32_t lanes) {
    count(m, w, in, lanes);
    const unsigned bytes = unsigned(in.bytes * in.vector);
    each(lanes, [&](int l) {
        uint8_t* p = m.memory(in.space, w.reg(in.from[0])[l] + in.offset, bytes, Machine::Kind::write, w, l, in);
        for (int i = 0; i < in.vector; ++i) memcpy(p + i * in.bytes, &w.reg(in.from[1 + i])[l], in.bytes);
    });
}

enum Update { ADD, MIN, MAX, EXCHANGE, COMPARE_AND_SWAP, AND, OR, XOR, INCREMENT };

template <class T>
T updated(int update, T old, T b, T c) {
    switch (update) {
        case ADD:
            return old + b;
        case MIN:
            return std::min(old, b);
        case MAX:
            return std::max(old, b);
        case EXCHANGE:
            return b;
        case COMPARE_AND_SWAP:
            return memcmp(&old, &b, sizeof old) ? old : c;
        case INCREMENT:
            return old >= b ? T(0) : T(old + 1);
        default:
            if constexpr (std::is_integral<T>::value) return update == AND ? old & b : update == OR ? old | b : old ^ b;
            return old;
    }
}

template <class T>
void atomic(Machine& m, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) {
        const uint64_t address = w.reg(in.from[0])[l] + in.offset;
        T* p = reinterpret_cast<T*>(m.memory(in.space, address, sizeof(T), Machine::Kind::atomic, w, l, in));
        const T old = *p;
        *p = updated<T>(in.variant, old, get<T>(w.reg(in.from[1]), l), in.from.size() > 2 ? get<T>(w.reg(in.from[2]), l) : T(0));
        if (!in.to.empty()) put<T>(w.reg(in.to[0]), l, old);
        if (std::is_integral<T>::value && m.regions.at(address) && uint64_t(p) == address) m.release_and_acquire(w, l, address);
    });
}

void fence(Machine& m, Warp& w, const Instruction&, uint32_t lanes) {
    each(lanes, [&](int l) { m.fence(w, l); });
}

void nothing(Machine&, Warp&, const Instruction&, uint32_t) {}

bool decode_atomic(Decoder& decoder, const Statement& s, Instruction& in, Type type) {
    static const std::map<std::string, Update> UPDATES{{"add", ADD},   {"min", MIN}, {"max", MAX}, {"exch", EXCHANGE}, {"cas", COMPARE_AND_SWAP},
                                                       {"and", AND}, {"or", OR},   {"xor", XOR}, {"inc", INCREMENT}};
    const size_t address = s.root() == "atom" ? 1 : 0;
    bool known = false;
    for (const std::string& part : s.op)
        if (const auto found = UPDATES.find(part); found != UPDATES.end()) in.variant = found->second, known = true;
    if (!known || s.has("noftz") || s.has("v2") || s.has("v4") || type.kind == 'h') return false;
    if (address) decoder.to(in, s.operands[0]);
    decoder.address(in, s.operands[address], in.offset);
    decoder.from(in, s, address + 1, type);
    if (type.kind == 'f')
        in.run = type.bytes == 8 ? atomic<double> : atomic<float>;
    else if (type.kind == 's')
        in.run = type.bytes == 8 ? atomic<int64_t> : atomic<int32_t>;
    else
        in.run = type.bytes == 8 ? atomic<uint64_t> : atomic<uint32_t>;
    return type.bytes >= 4;
}

}  // namespace

bool decode_memory(Decoder& decoder, const Statement& s, Instruction& in) {
    const Type type = s.type();
    const std::string& root = s.root();
    in.space = s.space();
    in.bytes = type.bytes;
    in.is_signed = type.kind == 's';
    in.vector = s.has("v2") ? 2 : s.has("v4") ? 4 : s.has("v8") ? 8 : 1;
    if (root == "ld" || root == "ldu") {
        in.run = load;
        decoder.to(in, s.operands[0]);
        decoder.address(in, s.operands[1], in.offset);
        return true;
    }
    if (root == "st") {
        in.run = store;
        decoder.address(in, s.operands[0], in.offset);
        decoder.from(in, s, 1, type);
        return true;
    }
    if (root == "atom" || root == "red") return decode_atomic(decoder, s, in, type);
    if (root == "membar" || root == "fence") {
        in.run = s.has("cta") ? nothing : fence;
        return !s.has("proxy");
    }
    if (root == "prefetch" || root == "prefetchu" || root == "discard") in.run = nothing;
    return in.run;
}

}  // namespace ptxsim
