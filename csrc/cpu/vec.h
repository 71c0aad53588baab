// Vectors of one instruction set, on the compiler's vector extension: the same source for SSE2 (or NEON), AVX2 and AVX-512.
#pragma once
#include <cstdint>
#include <utility>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
// A function of its own, so that its accumulators have all registers.
#define KERNEL inline __attribute__((noinline))
#define UNROLL _Pragma("GCC unroll 32")

namespace fused_preact::FUSED_PREACT_ISA {

// ROWS x COLUMNS accumulators, COLUMNS operands and a broadcast fill the registers of an instruction set.
#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, ROWS = 8, WGRAD_ROWS = 8;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32, ROWS = 6, WGRAD_ROWS = 4;
#else
constexpr int VECTOR_BYTES = 16, ROWS = 4, WGRAD_ROWS = 4;
#endif
constexpr int COLUMNS = 2;

struct bf16 {
    uint16_t bits;
};

// What planes and packed weights of bfloat16 activations hold: pairs where the machine multiplies pairs.
#if defined(__AVX512BF16__)
using paired = bf16;
#else
using paired = float;
#endif

// Accumulators are float, double for double.
template <class S>
struct Wide {
    using type = float;
};
template <>
struct Wide<double> {
    using type = double;
};
template <class S>
using wide = typename Wide<S>::type;

template <class A>
struct VecOf {
    typedef A type __attribute__((vector_size(VECTOR_BYTES)));
};
template <class A>
using Vec = typename VecOf<A>::type;
template <class A>
constexpr int LANES = VECTOR_BYTES / sizeof(A);

typedef uint32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));

template <class A>
INLINE Vec<A> broadcast(A value) {
    return value - Vec<A>{};
}

INLINE Vec<float> widen(Halves h) {
    Bits bits = __builtin_convertvector(h, Bits) << 16;
    return (Vec<float>)bits;
}

// Round to nearest even; a NaN stays one.
INLINE Halves narrow(Vec<float> v) {
#if defined(__AVX512BF16__)
    return (Halves)_mm512_cvtneps_pbh((__m512)v);
#else
    Bits bits = (Bits)v;
    Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Bits quiet = (bits >> 16) | 0x40;
    return __builtin_convertvector(v == v ? rounded : quiet, Halves);
#endif
}

INLINE Vec<float> load(const float* p) {
    Vec<float> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
INLINE Vec<double> load(const double* p) {
    Vec<double> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
INLINE Vec<float> load(const bf16* p) {
    Halves h;
    __builtin_memcpy(&h, p, sizeof h);
    return widen(h);
}

INLINE void store(float* p, Vec<float> v) { __builtin_memcpy(p, &v, sizeof v); }
INLINE void store(double* p, Vec<double> v) { __builtin_memcpy(p, &v, sizeof v); }
INLINE void store(bf16* p, Vec<float> v) {
    Halves h = narrow(v);
    __builtin_memcpy(p, &h, sizeof h);
}

// The first n lanes; the others are 0.
#if defined(__AVX512F__)
INLINE Vec<float> load(const float* p, int n) { return (Vec<float>)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
INLINE Vec<double> load(const double* p, int n) { return (Vec<double>)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p); }
INLINE Vec<float> load(const bf16* p, int n) {
    return widen((Halves)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p));
}
INLINE void store(float* p, Vec<float> v, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v); }
INLINE void store(double* p, Vec<double> v, int n) { _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v); }
INLINE void store(bf16* p, Vec<float> v, int n) { _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)narrow(v)); }
#else
template <class S>
INLINE Vec<wide<S>> load(const S* p, int n) {
    S lanes[LANES<wide<S>>] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
}
template <class S>
INLINE void store(S* p, Vec<wide<S>> v, int n) {
    S lanes[LANES<wide<S>>];
    store(lanes, v);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
#endif

// One step of a transposition: lanes l with the bit STEP change places between two rows.
template <int STEP, int... L>
INLINE void exchange(Bits& a, Bits& b, std::integer_sequence<int, L...>) {
    constexpr int W = sizeof...(L);
    const Bits low = __builtin_shufflevector(a, b, (L & STEP ? W + L - STEP : L)...);
    b = __builtin_shufflevector(a, b, (L & STEP ? W + L : L + STEP)...);
    a = low;
}
template <int STEP = 1>
INLINE void transpose(Bits (&rows)[LANES<uint32_t>]) {
    constexpr int W = LANES<uint32_t>;
    UNROLL for (int i = 0; i < W; ++i)
        if (!(i & STEP)) exchange<STEP>(rows[i], rows[i + STEP], std::make_integer_sequence<int, W>());
    if constexpr (2 * STEP < W) transpose<2 * STEP>(rows);
}

#if defined(__AVX512BF16__)
// 16 channels of a pixel, and of two pixels channel by channel.
typedef uint16_t Quarter __attribute__((vector_size(32)));
typedef uint16_t Pairs __attribute__((vector_size(64)));
INLINE Pairs interleaved(Quarter a, Quarter b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14,
                                   30, 15, 31);
}
#endif

// Past the caches: for tensors that will not be read while they are in one. p is aligned to the vector.
template <class S>
INLINE void stream(S* p, Vec<wide<S>> v) {
#if defined(__AVX512F__)
    if constexpr (sizeof(S) == 2)
        _mm256_stream_si256((__m256i*)p, (__m256i)narrow(v));
    else
        _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(__AVX2__)
    if constexpr (sizeof(S) == 2)
        store(p, v);
    else
        _mm256_stream_si256((__m256i*)p, (__m256i)v);
#else
    store(p, v);
#endif
}

// Before other threads read what was streamed.
INLINE void stream_fence() {
#ifdef __x86_64__
    _mm_sfence();
#endif
}

// v as S stores it.
template <class S>
INLINE Vec<wide<S>> rounded(Vec<wide<S>> v) {
    if constexpr (sizeof(S) == 2)
        return widen(narrow(v));
    else
        return v;
}

// A NaN in v comes out, as MAXPS returns its second operand.
template <class V>
INLINE V at_least(V floor, V v) {
    return floor > v ? floor : v;
}

template <class S>
INLINE wide<S> widened(S value) {
    if constexpr (sizeof(S) == 2) {
        uint32_t bits = uint32_t(value.bits) << 16;
        float f;
        __builtin_memcpy(&f, &bits, sizeof f);
        return f;
    } else {
        return value;
    }
}

template <class S>
INLINE S narrowed(wide<S> value) {
    if constexpr (sizeof(S) == 2) {
        uint32_t bits;
        __builtin_memcpy(&bits, &value, sizeof bits);
        uint32_t rounded = value == value ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : (bits >> 16) | 0x40;
        return S{uint16_t(rounded)};
    } else {
        return value;
    }
}

template <class T>
constexpr INLINE T smaller(T a, T b) {
    return a < b ? a : b;
}
template <class T>
constexpr INLINE T larger(T a, T b) {
    return a < b ? b : a;
}
constexpr INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr INLINE int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
constexpr INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace fused_preact::FUSED_PREACT_ISA
