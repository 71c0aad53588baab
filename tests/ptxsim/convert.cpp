// cvt: between integers and floats of all widths.
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "decode.h"
#include "machine.h"
#include "numbers.h"

namespace ptxsim {
namespace {

enum Rounding { AS_IS, TO_ZERO, DOWN, UP, NEAREST };

double rounded(double value, int rounding) {
    switch (rounding) {
        case TO_ZERO:
            return std::trunc(value);
        case DOWN:
            return std::floor(value);
        case UP:
            return std::ceil(value);
        default:
            return std::nearbyint(value);
    }
}

// variant: of rounding to an integer; flag: saturate to [0, 1], for integers to their range.
template <class To, class From>
void convert(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    using Limits = std::numeric_limits<To>;
    const uint64_t* a = w.reg(in.from[0]);
    uint64_t* d = w.reg(in.to[0]);
    each(lanes, [&](int l) {
        const From value = get<From>(a, l);
        if constexpr (std::is_floating_point<From>::value && std::is_integral<To>::value) {
            // Out of range gives the limit, NaN zero.
            const double r = rounded(value, in.variant);
            put<To>(d, l, r != r ? To(0) : r <= double(Limits::min()) ? Limits::min() : r >= double(Limits::max()) ? Limits::max() : To(r));
        } else if constexpr (std::is_floating_point<From>::value) {
            From r = in.variant ? From(rounded(value, in.variant)) : value;
            if (in.flag) r = r > 0 ? std::min(r, From(1)) : From(0);
            put<To>(d, l, To(r));
        } else if constexpr (std::is_integral<To>::value) {
            const __int128 wide = value;
            put<To>(d, l, in.flag ? To(std::min<__int128>(std::max<__int128>(wide, Limits::min()), Limits::max())) : To(value));
        } else {
            put<To>(d, l, To(value));
        }
    });
}

// relu keeps NaN.
float relu_if(bool relu, float value) { return relu && value < 0 ? 0.0f : value; }

template <uint16_t NARROW(float)>
void to_16_bits(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) { put<uint16_t>(w.reg(in.to[0]), l, NARROW(relu_if(in.flag, get<float>(w.reg(in.from[0]), l)))); });
}

// The first operand becomes the upper half.
template <uint16_t NARROW(float)>
void to_two_of_16_bits(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) {
        const uint32_t upper = NARROW(relu_if(in.flag, get<float>(w.reg(in.from[0]), l))), lower = NARROW(relu_if(in.flag, get<float>(w.reg(in.from[1]), l)));
        put<uint32_t>(w.reg(in.to[0]), l, upper << 16 | lower);
    });
}

template <float WIDE(uint16_t)>
void from_16_bits(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) { put<float>(w.reg(in.to[0]), l, WIDE(get<uint16_t>(w.reg(in.from[0]), l))); });
}

void to_tf32(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) { put<uint32_t>(w.reg(in.to[0]), l, rounded_tf32(get<float>(w.reg(in.from[0]), l))); });
}

template <class To>
Handler from_type(Type from) {
    if (from.kind == 'f') return from.bytes == 8 ? convert<To, double> : convert<To, float>;
    if (from.kind == 's') return from.bytes == 8 ? convert<To, int64_t> : from.bytes == 4 ? convert<To, int32_t> : from.bytes == 2 ? convert<To, int16_t> : convert<To, int8_t>;
    return from.bytes == 8 ? convert<To, uint64_t> : from.bytes == 4 ? convert<To, uint32_t> : from.bytes == 2 ? convert<To, uint16_t> : convert<To, uint8_t>;
}

Handler between(Type to, Type from) {
    if (to.kind == 'h' || from.kind == 'h') return nullptr;
    if (to.kind == 'f') return to.bytes == 8 ? from_type<double>(from) : from_type<float>(from);
    if (to.kind == 's') return to.bytes == 8 ? from_type<int64_t>(from) : to.bytes == 4 ? from_type<int32_t>(from) : to.bytes == 2 ? from_type<int16_t>(from) : from_type<int8_t>(from);
    return to.bytes == 8 ? from_type<uint64_t>(from) : to.bytes == 4 ? from_type<uint32_t>(from) : to.bytes == 2 ? from_type<uint16_t>(from) : from_type<uint8_t>(from);
}

}  // namespace

bool decode_convert(Decoder& decoder, const Statement& s, Instruction& in) {
    if (s.root() != "cvt") return false;
    const std::string &to = s.op[s.op.size() - 2], &from = s.op.back();
    in.variant = s.has("rzi") ? TO_ZERO : s.has("rmi") ? DOWN : s.has("rpi") ? UP : s.has("rni") ? NEAREST : AS_IS;
    in.flag = s.has("sat") || s.has("relu");
    // Only rounding to nearest is known for narrower floats, and half away from zero for tf32.
    const bool nearest = !(s.has("rz") || s.has("rm") || s.has("rp") || s.has("satfinite"));
    if (to == "tf32")
        in.run = s.has("rna") ? to_tf32 : nullptr;
    else if (from == "f32" && to == "bf16x2")
        in.run = nearest ? to_two_of_16_bits<to_bfloat> : nullptr;
    else if (from == "f32" && to == "f16x2")
        in.run = nearest ? to_two_of_16_bits<to_half> : nullptr;
    else if (from == "f32" && to == "bf16")
        in.run = nearest ? to_16_bits<to_bfloat> : nullptr;
    else if (from == "f32" && to == "f16")
        in.run = nearest ? to_16_bits<to_half> : nullptr;
    else if (to == "f32" && from == "bf16")
        in.run = from_16_bits<from_bfloat>;
    else if (to == "f32" && from == "f16")
        in.run = from_16_bits<from_half>;
    else
        in.run = between(type_of(to), type_of(from));
    if (!in.run) return false;
    decoder.to(in, s.operands[0]);
    decoder.from(in, s, 1, type_of(from));
    return true;
}

}  // namespace ptxsim
