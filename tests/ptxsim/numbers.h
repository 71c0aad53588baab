// 16-bit floats and tf32, as bits.
#pragma once
#include <cstdint>
#include <cstring>

namespace ptxsim {

inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float from_bfloat(uint16_t bits) { return float_of(uint32_t(bits) << 16); }

inline float from_half(uint16_t bits) {
    _Float16 value;
    memcpy(&value, &bits, sizeof value);
    return float(value);
}

// To nearest, ties to even; NaN is the canonical one.
inline uint16_t to_bfloat(float value) {
    if (value != value) return 0x7fff;
    const uint32_t bits = bits_of(value);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint16_t to_half(float value) {
    if (value != value) return 0x7fff;
    const _Float16 half = _Float16(value);
    uint16_t bits;
    memcpy(&bits, &half, sizeof bits);
    return bits;
}

// One rounding from a double: first to odd, so that the second rounding sees what the first dropped.
inline float to_odd(double value) {
    const float nearest = float(value);
    if (double(nearest) == value || nearest != nearest) return nearest;
    uint32_t bits = bits_of(nearest);
    if (bits & 1) return nearest;
    // The odd neighbour on the side of the value.
    const bool away = (double(nearest) < value) == (value > 0);
    return float_of(away ? bits + 1 : bits - 1);
}

// tf32 keeps 10 bits of the mantissa: the tensor cores ignore the rest, cvt.rna rounds half away from zero.
inline float truncated_tf32(uint32_t bits) { return float_of(bits & 0xFFFFE000u); }
inline uint32_t rounded_tf32(float value) {
    const uint32_t bits = bits_of(value);
    return (bits & 0x7F800000u) == 0x7F800000u ? bits : (bits + 0x1000) & 0xFFFFE000u;
}

}  // namespace ptxsim
