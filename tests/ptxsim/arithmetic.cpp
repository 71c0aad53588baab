// Integers and floats: what C++ has an operator or a function for.
#include <cmath>

#include "decode.h"
#include "machine.h"

namespace ptxsim {
namespace {

template <class T, class F>
void unary(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    const uint64_t* a = w.reg(in.from[0]);
    uint64_t* d = w.reg(in.to[0]);
    each(lanes, [&](int l) { put<T>(d, l, F()(get<T>(a, l))); });
}

template <class T, class F>
void binary(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    const uint64_t *a = w.reg(in.from[0]), *b = w.reg(in.from[1]);
    uint64_t* d = w.reg(in.to[0]);
    each(lanes, [&](int l) { put<T>(d, l, F()(get<T>(a, l), get<T>(b, l))); });
}

template <class T, class F>
void ternary(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    const uint64_t *a = w.reg(in.from[0]), *b = w.reg(in.from[1]), *c = w.reg(in.from[2]);
    uint64_t* d = w.reg(in.to[0]);
    each(lanes, [&](int l) { put<T>(d, l, F()(get<T>(a, l), get<T>(b, l), get<T>(c, l))); });
}

#define FUNCTOR(name, params, expression)            \
    struct name {                                    \
        template <class T>                           \
        T operator() params const {                  \
            return T(expression);                    \
        }                                            \
    };
FUNCTOR(Add, (T a, T b), a + b)
FUNCTOR(Sub, (T a, T b), a - b)
FUNCTOR(Mul, (T a, T b), a* b)
FUNCTOR(Div, (T a, T b), b == 0 ? T(-1) : a / b)
FUNCTOR(Rem, (T a, T b), b == 0 ? a : a % b)
FUNCTOR(Min, (T a, T b), b < a ? b : a)
FUNCTOR(Max, (T a, T b), a < b ? b : a)
FUNCTOR(Mad, (T a, T b, T c), a* b + c)
FUNCTOR(Negated, (T a), -a)
FUNCTOR(Absolute, (T a), a < 0 ? -a : a)
FUNCTOR(Quotient, (T a, T b), a / b)
FUNCTOR(FloatMin, (T a, T b), std::fmin(a, b))
FUNCTOR(FloatMax, (T a, T b), std::fmax(a, b))
FUNCTOR(Fma, (T a, T b, T c), std::fma(a, b, c))
FUNCTOR(FloatAbsolute, (T a), std::fabs(a))
// copysign.f32 d, a, b: the sign of a, the value of b.
FUNCTOR(CopySign, (T a, T b), std::copysign(b, a))
FUNCTOR(Exp2, (T a), std::exp2(a))
FUNCTOR(Log2, (T a), std::log2(a))
FUNCTOR(Rsqrt, (T a), 1 / std::sqrt(a))
FUNCTOR(Reciprocal, (T a), 1 / a)
FUNCTOR(Sqrt, (T a), std::sqrt(a))
FUNCTOR(Tanh, (T a), std::tanh(a))
FUNCTOR(Sin, (T a), std::sin(a))
FUNCTOR(Cos, (T a), std::cos(a))
#undef FUNCTOR

// min and max that give NaN where an operand is.
template <class T, class F>
void or_nan(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    const uint64_t *a = w.reg(in.from[0]), *b = w.reg(in.from[1]);
    uint64_t* d = w.reg(in.to[0]);
    each(lanes, [&](int l) {
        const T x = get<T>(a, l), y = get<T>(b, l);
        put<T>(d, l, x != x ? x : y != y ? y : F()(x, y));
    });
}

template <class Narrow, class Wide>
void multiply_wide(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) {
        Wide product = Wide(get<Narrow>(w.reg(in.from[0]), l)) * Wide(get<Narrow>(w.reg(in.from[1]), l));
        if (in.from.size() > 2) product += get<Wide>(w.reg(in.from[2]), l);
        put<Wide>(w.reg(in.to[0]), l, product);
    });
}

template <class T, class Wide>
void multiply_high(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) {
        T high = T((Wide(get<T>(w.reg(in.from[0]), l)) * Wide(get<T>(w.reg(in.from[1]), l))) >> (sizeof(T) * 8));
        if (in.from.size() > 2) high += get<T>(w.reg(in.from[2]), l);
        put<T>(w.reg(in.to[0]), l, high);
    });
}

enum Comparison { EQ, NE, LT, LE, GT, GE, IS_NAN, IS_NUMBER, OR_UNORDERED = 8 };
enum Combination { ALONE, AND, OR, XOR };

template <class T>
bool compared(int comparison, T x, T y) {
    const bool unordered = x != x || y != y;
    if (unordered && comparison & OR_UNORDERED) return true;
    switch (comparison & 7) {
        case EQ:
            return x == y;
        case NE:
            return x != y && !unordered;
        case LT:
            return x < y;
        case LE:
            return x <= y;
        case GT:
            return x > y;
        case GE:
            return x >= y;
        case IS_NAN:
            return unordered;
        default:
            return !unordered;
    }
}

template <class T>
void set_predicate(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) {
        bool result = compared(in.variant, get<T>(w.reg(in.from[0]), l), get<T>(w.reg(in.from[1]), l));
        bool other = !result;
        if (in.second_variant != ALONE) {
            const bool with = (get<uint8_t>(w.reg(in.from[2]), l) != 0) != in.flag;
            auto combined = [&](bool r) { return in.second_variant == AND ? r && with : in.second_variant == OR ? r || with : r != with; };
            result = combined(result), other = combined(other);
        }
        put<uint8_t>(w.reg(in.to[0]), l, result);
        if (in.to.size() > 1) put<uint8_t>(w.reg(in.to[1]), l, other);
    });
}

template <template <class> class H>
Handler by_type(Type t) {
    if (t.kind == 'f') return t.bytes == 8 ? H<double>::handler : H<float>::handler;
    if (t.kind == 's') return t.bytes == 8 ? H<int64_t>::handler : t.bytes == 2 ? H<int16_t>::handler : H<int32_t>::handler;
    return t.bytes == 8 ? H<uint64_t>::handler : t.bytes == 2 ? H<uint16_t>::handler : t.bytes == 1 ? H<uint8_t>::handler : H<uint32_t>::handler;
}

template <class T>
struct SetPredicate {
    static constexpr Handler handler = set_predicate<T>;
};

// A handler for floats, and one for integers of each size; null where there is none.
struct Entry {
    Handler f32 = nullptr, f64 = nullptr, s16 = nullptr, s32 = nullptr, s64 = nullptr, u16 = nullptr, u32 = nullptr, u64 = nullptr;

    Handler of(Type t) const {
        if (t.kind == 'f') return t.bytes == 8 ? f64 : f32;
        if (t.kind == 's') return t.bytes == 8 ? s64 : t.bytes == 4 ? s32 : s16;
        return t.bytes == 8 ? u64 : t.bytes == 4 ? u32 : t.bytes == 2 ? u16 : nullptr;
    }
};

template <class F>
constexpr Entry floats() {
    return {unary<float, F>, unary<double, F>};
}

template <class Integer, class Float>
constexpr Entry unaries() {
    return {unary<float, Float>,     unary<double, Float>,     unary<int16_t, Integer>,  unary<int32_t, Integer>,
            unary<int64_t, Integer>, unary<uint16_t, Integer>, unary<uint32_t, Integer>, unary<uint64_t, Integer>};
}

template <class Integer, class Float>
constexpr Entry binaries() {
    return {binary<float, Float>,     binary<double, Float>,     binary<int16_t, Integer>,  binary<int32_t, Integer>,
            binary<int64_t, Integer>, binary<uint16_t, Integer>, binary<uint32_t, Integer>, binary<uint64_t, Integer>};
}

template <class F>
constexpr Entry integers() {
    return {nullptr,           nullptr,           binary<int16_t, F>,  binary<int32_t, F>, binary<int64_t, F>,
            binary<uint16_t, F>, binary<uint32_t, F>, binary<uint64_t, F>};
}

const std::map<std::string, Entry>& table() {
    static const std::map<std::string, Entry> entries{
        {"add", binaries<Add, Add>()},
        {"sub", binaries<Sub, Sub>()},
        {"mul", binaries<Mul, Mul>()},
        {"mad", {ternary<float, Fma>, ternary<double, Fma>, ternary<int16_t, Mad>, ternary<int32_t, Mad>, ternary<int64_t, Mad>,
                 ternary<uint16_t, Mad>, ternary<uint32_t, Mad>, ternary<uint64_t, Mad>}},
        {"div", binaries<Div, Quotient>()},
        {"rem", integers<Rem>()},
        {"min", binaries<Min, FloatMin>()},
        {"max", binaries<Max, FloatMax>()},
        {"neg", unaries<Negated, Negated>()},
        {"abs", unaries<Absolute, FloatAbsolute>()},
        {"fma", {ternary<float, Fma>, ternary<double, Fma>}},
        {"copysign", {binary<float, CopySign>, binary<double, CopySign>}},
        {"ex2", floats<Exp2>()},
        {"lg2", floats<Log2>()},
        {"rsqrt", floats<Rsqrt>()},
        {"rcp", floats<Reciprocal>()},
        {"sqrt", floats<Sqrt>()},
        {"tanh", floats<Tanh>()},
        {"sin", floats<Sin>()},
        {"cos", floats<Cos>()},
    };
    return entries;
}

Handler wide_multiply(Type t) {
    if (t.bytes == 4) return t.kind == 's' ? multiply_wide<int32_t, int64_t> : multiply_wide<uint32_t, uint64_t>;
    return t.kind == 's' ? multiply_wide<int16_t, int32_t> : multiply_wide<uint16_t, uint32_t>;
}

Handler high_multiply(Type t) {
    if (t.bytes == 4) return t.kind == 's' ? multiply_high<int32_t, int64_t> : multiply_high<uint32_t, uint64_t>;
    return t.kind == 's' ? multiply_high<int64_t, __int128> : multiply_high<uint64_t, unsigned __int128>;
}

bool decode_comparison(Decoder& decoder, const Statement& s, Instruction& in, Type type) {
    // lo, ls, hi, hs: unsigned.
    static const std::map<std::string, int> COMPARISONS{
        {"eq", EQ}, {"ne", NE}, {"lt", LT}, {"le", LE}, {"gt", GT}, {"ge", GE}, {"lo", LT}, {"ls", LE}, {"hi", GT}, {"hs", GE},
        {"equ", EQ | OR_UNORDERED}, {"neu", NE | OR_UNORDERED}, {"ltu", LT | OR_UNORDERED}, {"leu", LE | OR_UNORDERED},
        {"gtu", GT | OR_UNORDERED}, {"geu", GE | OR_UNORDERED}, {"nan", IS_NAN}, {"num", IS_NUMBER}};
    const auto comparison = COMPARISONS.find(s.op[1]);
    if (comparison == COMPARISONS.end() || type.kind == 'h') return false;
    in.variant = comparison->second;
    in.second_variant = s.has("and") ? AND : s.has("or") ? OR : s.has("xor") ? XOR : ALONE;
    Statement plain = s;
    if (s.operands.size() > 3 && s.operands[3][0] == '!') {
        in.flag = true;
        plain.operands[3] = s.operands[3].substr(1);
    }
    decoder.to(in, s.operands[0]);
    decoder.from(in, plain, 1, type);
    in.run = by_type<SetPredicate>(type);
    return true;
}

}  // namespace

bool decode_arithmetic(Decoder& decoder, const Statement& s, Instruction& in) {
    const Type type = s.type();
    if (s.root() == "setp") return decode_comparison(decoder, s, in, type);
    const auto found = table().find(s.root());
    if (found == table().end() || type.kind == 'h' || type.kind == 'p') return false;
    if (s.has("sat") || s.has("cc")) return false;
    const bool product = s.root() == "mul" || s.root() == "mad";
    if (product && s.has("wide"))
        in.run = wide_multiply(type);
    else if (product && s.has("hi"))
        in.run = high_multiply(type);
    else if (s.has("NaN"))
        in.run = s.root() == "min" ? or_nan<float, FloatMin> : or_nan<float, FloatMax>;
    else
        in.run = found->second.of(type);
    if (!in.run) return false;
    decoder.to(in, s.operands[0]);
    decoder.from(in, s, 1, type);
    return true;
}

}  // namespace ptxsim
