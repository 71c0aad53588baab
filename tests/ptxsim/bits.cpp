// Moves, logic, shifts and fields of bits.
#include <algorithm>

#include "decode.h"
#include "machine.h"

namespace ptxsim {
namespace {

uint64_t ones(int bits) { return bits >= 64 ? ~uint64_t(0) : (uint64_t(1) << bits) - 1; }

// Also from and to a vector of parts.
void move(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    const int parts = int(std::max(in.to.size(), in.from.size())), bits = 8 * in.bytes / parts;
    each(lanes, [&](int l) {
        uint64_t value = 0;
        for (size_t i = 0; i < in.from.size(); ++i) value |= (w.reg(in.from[i])[l] & ones(8 * in.bytes / int(in.from.size()))) << bits * int(i);
        if (in.to.size() == 1)
            w.reg(in.to[0])[l] = value & ones(8 * in.bytes);
        else
            for (int i = 0; i < parts; ++i) w.reg(in.to[i])[l] = value >> bits * i & ones(bits);
    });
}

// Between a space's own addresses and generic ones; `flag`: to the space.
void convert_address(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    const uint64_t window = in.space == Space::shared ? SHARED_WINDOW : in.space == Space::local ? LOCAL_WINDOW : 0;
    each(lanes, [&](int l) { w.reg(in.to[0])[l] = in.flag ? w.reg(in.from[0])[l] - window : w.reg(in.from[0])[l] + window; });
}

void select(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) { w.reg(in.to[0])[l] = w.reg(in.from[get<uint8_t>(w.reg(in.from[2]), l) ? 0 : 1])[l]; });
}

enum Logic { AND, OR, XOR, NOT };

void logic(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) {
        const uint64_t a = w.reg(in.from[0])[l], b = in.from.size() > 1 ? w.reg(in.from[1])[l] : 0;
        const uint64_t all = in.flag ? 1 : ones(8 * in.bytes);  // a predicate is one bit
        w.reg(in.to[0])[l] = all & (in.variant == AND ? a & b : in.variant == OR ? a | b : in.variant == XOR ? a ^ b : ~a);
    });
}

// Bit i of the result is the bit of the table that bits i of a, b and c number.
void look_up(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) {
        const uint32_t a = get<uint32_t>(w.reg(in.from[0]), l), b = get<uint32_t>(w.reg(in.from[1]), l), c = get<uint32_t>(w.reg(in.from[2]), l);
        const uint32_t lut = get<uint32_t>(w.reg(in.from[3]), l);
        uint32_t result = 0;
        for (int i = 0; i < 8; ++i)
            if (lut >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
        put<uint32_t>(w.reg(in.to[0]), l, result);
    });
}

// Shifts by the width or more give zeros, or copies of the sign.
template <class T>
void shift_left(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) {
        const uint32_t by = get<uint32_t>(w.reg(in.from[1]), l);
        put<T>(w.reg(in.to[0]), l, by >= sizeof(T) * 8 ? T(0) : T(get<T>(w.reg(in.from[0]), l) << by));
    });
}

template <class T>
void shift_right(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    constexpr uint32_t BITS = sizeof(T) * 8;
    each(lanes, [&](int l) {
        const uint32_t by = get<uint32_t>(w.reg(in.from[1]), l);
        const T value = get<T>(w.reg(in.from[0]), l);
        put<T>(w.reg(in.to[0]), l, by < BITS ? T(value >> by) : T(value < T(0) ? -1 : 0));
    });
}

// shf: 32 bits out of the 64 of (b, a); `flag`: clamped, else modulo 32.
void funnel_shift(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) {
        const uint64_t both = get<uint32_t>(w.reg(in.from[0]), l) | uint64_t(get<uint32_t>(w.reg(in.from[1]), l)) << 32;
        uint32_t by = get<uint32_t>(w.reg(in.from[2]), l);
        by = in.flag ? std::min(by, 32u) : by & 31;
        put<uint32_t>(w.reg(in.to[0]), l, in.variant ? uint32_t(both << by >> 32) : uint32_t(both >> by));
    });
}

void insert_field(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) {
        const uint64_t a = w.reg(in.from[0])[l], b = w.reg(in.from[1])[l];
        const uint32_t at = get<uint8_t>(w.reg(in.from[2]), l), length = get<uint8_t>(w.reg(in.from[3]), l);
        const uint64_t mask = at >= 64 ? 0 : ones(int(length)) << at;
        w.reg(in.to[0])[l] = ((b & ~mask) | (at >= 64 ? 0 : a << at & mask)) & ones(8 * in.bytes);
    });
}

template <class T>
void extract_field(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    constexpr uint32_t BITS = sizeof(T) * 8;
    each(lanes, [&](int l) {
        const T a = get<T>(w.reg(in.from[0]), l);
        const uint32_t at = get<uint8_t>(w.reg(in.from[1]), l), length = get<uint8_t>(w.reg(in.from[2]), l);
        // The sign is that of the field's last bit, or of a where the field is longer.
        const bool sign = std::is_signed<T>::value && length && (uint64_t(a) >> std::min(at + length - 1, BITS - 1) & 1);
        uint64_t field = at >= BITS ? 0 : uint64_t(typename std::make_unsigned<T>::type(a)) >> at;
        const uint32_t there = at >= BITS ? 0 : std::min(length, BITS - at);
        field &= ones(int(there));
        if (sign) field |= ~ones(int(there));
        put<T>(w.reg(in.to[0]), l, T(field));
    });
}

// prmt: each nibble of c picks a byte of (b, a), or its sign.
void permute_bytes(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) {
        const uint64_t both = get<uint32_t>(w.reg(in.from[0]), l) | uint64_t(get<uint32_t>(w.reg(in.from[1]), l)) << 32;
        const uint32_t selectors = get<uint32_t>(w.reg(in.from[2]), l);
        uint32_t result = 0;
        for (int i = 0; i < 4; ++i) {
            const uint32_t selector = selectors >> 4 * i & 15;
            uint32_t byte = both >> 8 * (selector & 7) & 255;
            if (selector & 8) byte = byte & 128 ? 255 : 0;
            result |= byte << 8 * i;
        }
        put<uint32_t>(w.reg(in.to[0]), l, result);
    });
}

template <class T>
void count_ones(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) { put<uint32_t>(w.reg(in.to[0]), l, uint32_t(__builtin_popcountll(get<T>(w.reg(in.from[0]), l)))); });
}

template <class T>
void leading_zeros(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) {
        const T a = get<T>(w.reg(in.from[0]), l);
        put<uint32_t>(w.reg(in.to[0]), l, a ? uint32_t(__builtin_clzll(a)) - (64 - sizeof(T) * 8) : sizeof(T) * 8);
    });
}

void reverse_bits(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) {
        const uint64_t a = w.reg(in.from[0])[l];
        uint64_t reversed = 0;
        for (int i = 0; i < 8 * in.bytes; ++i) reversed |= (a >> i & 1) << (8 * in.bytes - 1 - i);
        w.reg(in.to[0])[l] = reversed;
    });
}

template <class Signed, class Unsigned>
Handler right(Type t) {
    return t.kind == 's' ? shift_right<Signed> : shift_right<Unsigned>;
}

Handler handler_of(const Statement& s, Type t, Instruction& in) {
    static const std::map<std::string, Logic> LOGIC{{"and", AND}, {"or", OR}, {"xor", XOR}, {"not", NOT}};
    const std::string& root = s.root();
    const auto found = LOGIC.find(root);
    if (found != LOGIC.end()) {
        in.variant = found->second;
        in.flag = t.kind == 'p';
        return logic;
    }
    if (root == "mov") return move;
    if (root == "cvta") {
        in.space = s.space();
        in.flag = s.has("to");
        return convert_address;
    }
    if (root == "selp") return select;
    if (root == "lop3") return look_up;
    if (root == "shl") return t.bytes == 8 ? shift_left<uint64_t> : t.bytes == 2 ? shift_left<uint16_t> : shift_left<uint32_t>;
    if (root == "shr") return t.bytes == 8 ? right<int64_t, uint64_t>(t) : t.bytes == 2 ? right<int16_t, uint16_t>(t) : right<int32_t, uint32_t>(t);
    if (root == "shf") {
        in.variant = s.has("l");
        in.flag = s.has("clamp");
        return funnel_shift;
    }
    if (root == "bfi") return insert_field;
    if (root == "bfe" && t.kind == 's') return t.bytes == 8 ? extract_field<int64_t> : extract_field<int32_t>;
    if (root == "bfe") return t.bytes == 8 ? extract_field<uint64_t> : extract_field<uint32_t>;
    if (root == "prmt" && s.op.size() == 2) return permute_bytes;
    if (root == "popc") return t.bytes == 8 ? count_ones<uint64_t> : count_ones<uint32_t>;
    if (root == "clz") return t.bytes == 8 ? leading_zeros<uint64_t> : leading_zeros<uint32_t>;
    if (root == "brev") return reverse_bits;
    return nullptr;
}

}  // namespace

bool decode_bits(Decoder& decoder, const Statement& s, Instruction& in) {
    const Type type = s.type();
    in.run = handler_of(s, type, in);
    if (!in.run) return false;
    in.bytes = type.bytes;
    decoder.to(in, s.operands[0]);
    decoder.from(in, s, 1, type);
    return true;
}

}  // namespace ptxsim
