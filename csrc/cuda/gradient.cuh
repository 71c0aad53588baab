// dy between its arrival in registers and the tensor cores: as it is, or deferred.
#pragma once
#include "norm.cuh"
#include "ptx.cuh"
#include "records.h"

namespace fused_preact::cuda {

// Where chunks of dy come from, as the tensor cores take them; k: channels of a pixel. The thread has those from `channel` on.
template <class T, bool DEFERRED>
struct Gradient {
    using Raw = uint4;

    __device__ Gradient(const void*, const void*, const float*, int, int) {}
    __device__ Raw read(const T* from) const { return *reinterpret_cast<const uint4*>(from); }
    __device__ uint4 chunk(const Raw& raw) const { return operand(raw, T{}); }
};

// dy = a*dy + b*(dy_x - mean) + c, rounded once.
template <class T>
struct Gradient<T, true> {
    struct Raw {
        uint4 dy, x;
    };
    const T *dy, *x;
    NormGrad<T, PER_CHUNK<T>> grad;

    __device__ Gradient(const void* dy, const void* dy_x, const float* dy_coeffs, int k, int channel)
        : dy(static_cast<const T*>(dy)), x(static_cast<const T*>(dy_x)), grad(dy_coeffs + channel, k) {}
    // from: in dy; dy_x has its chunk at the same place.
    __device__ Raw read(const T* from) const { return {*reinterpret_cast<const uint4*>(from), *reinterpret_cast<const uint4*>(x + (from - dy))}; }
    __device__ uint4 chunk(const Raw& raw) const {
        Values<PER_CHUNK<T>> value = unpacked<T>(raw.dy);
        const Values<PER_CHUNK<T>> other = unpacked<T>(raw.x);
#pragma unroll
        for (int i = 0; i < PER_CHUNK<T>; ++i) value[i] = grad(value[i], other[i], i);
        return operand(packed<false, T>(value), T{});
    }
};

// body(Gradient), for the channels from `channel` on.
template <class T, class Body>
__device__ inline void with_gradient(const BnReluConv2dBwd& args, int channel, Body&& body) {
    if (args.dy_coeffs)
        body(Gradient<T, true>(args.dy, args.dy_x, reloaded(args.dy_coeffs), args.conv.k, channel));
    else
        body(Gradient<T, false>(args.dy, args.dy_x, args.dy_coeffs, args.conv.k, channel));
}

}  // namespace fused_preact::cuda
