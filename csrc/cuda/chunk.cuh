// 16 bytes of channels: what one thread loads and stores at once, in float32 between.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace fused_preact::cuda {

using bf16 = __nv_bfloat16;
using f16 = __half;

template <class T>
constexpr int PER_CHUNK = 16 / sizeof(T);

template <class T>
struct Chunk {
    float v[PER_CHUNK<T>];

    __device__ float& operator[](int i) { return v[i]; }
    __device__ float operator[](int i) const { return v[i]; }
    __device__ void add(const Chunk& other) {
#pragma unroll
        for (int i = 0; i < PER_CHUNK<T>; ++i) v[i] += other.v[i];
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

__device__ inline float relu(float v) {
    float kept;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(kept) : "f"(v));
    return kept;
}

}  // namespace detail

template <class T>
__device__ inline Chunk<T> unpacked(uint4 raw) {
    Chunk<T> chunk;
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
__device__ inline uint4 packed(const Chunk<T>& chunk) {
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

template <class T>
__device__ inline Chunk<T> load(const T* p) {
    return unpacked<T>(*reinterpret_cast<const uint4*>(p));
}

template <bool RELU = false, class T>
__device__ inline void store(T* p, const Chunk<T>& chunk) {
    *reinterpret_cast<uint4*>(p) = packed<RELU>(chunk);
}

// As T stores it.
template <class T>
__device__ inline Chunk<T> rounded(const Chunk<T>& chunk) {
    return unpacked<T>(packed<false>(chunk));
}

// Of a vector of float32, from this chunk's first channel on; without one, `otherwise`.
template <class T>
__device__ inline Chunk<T> channels(const float* vector, float otherwise = 0) {
    Chunk<T> chunk;
#pragma unroll
    for (int i = 0; i < PER_CHUNK<T>; i += 4) {
        const float4 four = vector ? *reinterpret_cast<const float4*>(vector + i) : float4{otherwise, otherwise, otherwise, otherwise};
        chunk[i] = four.x, chunk[i + 1] = four.y, chunk[i + 2] = four.z, chunk[i + 3] = four.w;
    }
    return chunk;
}

template <class T>
__device__ inline void store_channels(float* vector, const Chunk<T>& chunk) {
#pragma unroll
    for (int i = 0; i < PER_CHUNK<T>; i += 4) *reinterpret_cast<float4*>(vector + i) = {chunk[i], chunk[i + 1], chunk[i + 2], chunk[i + 3]};
}

}  // namespace fused_preact::cuda
