// 16 bytes of channels: what one thread loads and stores at once, in float32 between.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace fused_preact::cuda {

using bf16 = __nv_bfloat16;
using f16 = __half;

template <class T>
constexpr int PER_CHUNK = 16 / sizeof(T);
// Two neighbouring channels, in memory.
template <class T>
using Pair = std::conditional_t<sizeof(T) == 4, float2, uint32_t>;

// Values of N channels of a pixel: a chunk, or where channels do not come in chunks, one.
template <int N>
struct Values {
    float v[N];

    __device__ float& operator[](int i) { return v[i]; }
    __device__ float operator[](int i) const { return v[i]; }
    __device__ void add(const Values& other) {
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] += other.v[i];
    }
};

namespace detail {

__device__ inline float2 wide(uint32_t pair, bf16) { return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)}; }
__device__ inline float2 wide(uint32_t pair, f16) {
    const auto low = __ushort_as_half(static_cast<unsigned short>(pair)), high = __ushort_as_half(static_cast<unsigned short>(pair >> 16));
    return {__half2float(low), __half2float(high)};
}

// The first operand of cvt becomes the upper half. relu keeps NaN.
template <bool RELU>
__device__ inline uint32_t narrow(float2 pair, bf16) {
    uint32_t bits;
    if constexpr (RELU)
        asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(pair.y), "f"(pair.x));
    else
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(pair.y), "f"(pair.x));
    return bits;
}
template <bool RELU>
__device__ inline uint32_t narrow(float2 pair, f16) {
    uint32_t bits;
    if constexpr (RELU)
        asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(pair.y), "f"(pair.x));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(pair.y), "f"(pair.x));
    return bits;
}

// Two channels of float32 are a pair as they are.
__device__ inline float2 wide(float2 pair, float) { return pair; }
template <bool RELU>
__device__ inline float2 narrow(float2 pair, float) {
    static_assert(!RELU);
    return pair;
}

__device__ inline float relu(float v) {
    float kept;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(kept) : "f"(v));
    return kept;
}

}  // namespace detail

__device__ inline float widened(float v) { return v; }
__device__ inline float widened(bf16 v) { return __bfloat162float(v); }
__device__ inline float widened(f16 v) { return __half2float(v); }

template <class T>
__device__ inline Values<PER_CHUNK<T>> unpacked(uint4 raw) {
    Values<PER_CHUNK<T>> chunk;
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(T) == 4) {
            chunk[i] = __uint_as_float(words[i]);
        } else {
            const float2 pair = detail::wide(words[i], T{});
            chunk[2 * i] = pair.x, chunk[2 * i + 1] = pair.y;
        }
    }
    return chunk;
}

// RELU: of what is stored.
template <bool RELU, class T>
__device__ inline uint4 packed(const Values<PER_CHUNK<T>>& chunk) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(T) == 4)
            words[i] = __float_as_uint(RELU ? detail::relu(chunk[i]) : chunk[i]);
        else
            words[i] = detail::narrow<RELU>({chunk[2 * i], chunk[2 * i + 1]}, T{});
    }
    return {words[0], words[1], words[2], words[3]};
}

// N channels as they lie in memory: one, or a chunk.
template <int N, class T>
struct Packed {
    std::conditional_t<N == 1, T, uint4> raw;

    Packed() = default;
    __device__ explicit Packed(const T* p) : raw(*reinterpret_cast<const decltype(raw)*>(p)) {}
    __device__ Values<N> values() const {
        if constexpr (N == 1)
            return {widened(raw)};
        else
            return unpacked<T>(raw);
    }
};

template <int N, class T>
__device__ inline Values<N> load(const T* p) {
    return Packed<N, T>(p).values();
}

template <bool RELU = false, int N, class T>
__device__ inline void store(T* p, const Values<N>& values) {
    if constexpr (N == 1)
        *p = T(RELU ? detail::relu(values[0]) : values[0]);
    else
        *reinterpret_cast<uint4*>(p) = packed<RELU, T>(values);
}

// Of a vector of float32, from these channels' first on.
template <int N>
__device__ inline Values<N> channels(const float* vector) {
    Values<N> values;
    if constexpr (N == 1) {
        values[0] = *vector;
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const float4 four = *reinterpret_cast<const float4*>(vector + i);
            values[i] = four.x, values[i + 1] = four.y, values[i + 2] = four.z, values[i + 3] = four.w;
        }
    }
    return values;
}

template <int N>
__device__ inline void store_channels(float* vector, const Values<N>& values) {
    if constexpr (N == 1) {
        *vector = values[0];
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) *reinterpret_cast<float4*>(vector + i) = {values[i], values[i + 1], values[i + 2], values[i + 3]};
    }
}

}  // namespace fused_preact::cuda
