// Arithmetic of f16 and bf16, one or two in a register: exact in double, then one rounding.
#include <cmath>

#include "decode.h"
#include "machine.h"
#include "numbers.h"

namespace ptxsim {
namespace {

enum Operation { ADD, SUB, MUL, FMA, MIN, MAX, NEG, ABS };

struct Bfloat {
    static double value(uint32_t bits) { return from_bfloat(uint16_t(bits)); }
    static uint16_t rounded(double value) { return to_bfloat(to_odd(value)); }
};

struct Half {
    static double value(uint32_t bits) { return from_half(uint16_t(bits)); }
    static uint16_t rounded(double value) { return to_half(to_odd(value)); }
};

double result_of(int operation, const double* v, bool nan) {
    switch (operation) {
        case ADD:
            return v[0] + v[1];
        case SUB:
            return v[0] - v[1];
        case MUL:
            return v[0] * v[1];
        case FMA:
            return v[0] * v[1] + v[2];
        case NEG:
            return -v[0];
        case ABS:
            return std::fabs(v[0]);
        default:
            if (nan && (v[0] != v[0] || v[1] != v[1])) return NAN;
            return operation == MIN ? std::fmin(v[0], v[1]) : std::fmax(v[0], v[1]);
    }
}

// variant: the operation; flag: relu, which keeps NaN; second_variant: min and max give NaN for NaN; vector: how many in a register.
template <class T>
void compute(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) {
        uint32_t packed = 0;
        for (int i = 0; i < in.vector; ++i) {
            double v[3] = {};
            for (size_t j = 0; j < in.from.size(); ++j) v[j] = T::value(get<uint32_t>(w.reg(in.from[j]), l) >> 16 * i);
            double r = result_of(in.variant, v, in.second_variant);
            if (in.flag && r < 0) r = 0;
            packed |= uint32_t(T::rounded(r)) << 16 * i;
        }
        put<uint32_t>(w.reg(in.to[0]), l, packed);
    });
}

}  // namespace

bool decode_half(Decoder& decoder, const Statement& s, Instruction& in) {
    static const std::map<std::string, Operation> OPERATIONS{{"add", ADD}, {"sub", SUB}, {"mul", MUL}, {"fma", FMA},
                                                             {"min", MIN}, {"max", MAX}, {"neg", NEG}, {"abs", ABS}};
    const Type type = s.type();
    const auto found = OPERATIONS.find(s.root());
    if (type.kind != 'h' || found == OPERATIONS.end() || s.has("sat")) return false;
    in.variant = found->second;
    in.flag = s.has("relu");
    in.second_variant = s.has("NaN");
    in.vector = type.bytes / 2;
    in.run = type.bfloat ? compute<Bfloat> : compute<Half>;
    decoder.to(in, s.operands[0]);
    decoder.from(in, s, 1, type);
    return true;
}

}  // namespace ptxsim
