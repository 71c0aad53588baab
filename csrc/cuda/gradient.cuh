// Where a slab's chunks come from in backward: dy, written or deferred.
#pragma once
#include "prologue.cuh"
#include "records.h"

namespace fused_preact::cuda {

// A chunk of dy; deferred it is a*dy + b*(dy_x - mean) + c = a*dy + (b*dy_x + (c - b*mean)). The thread has the channels from `channel` on.
template <class T, bool DEFERRED>
struct Gradient {
    struct Raw {
        uint4 dy, x;
    };
    Values<8> a, b, c;
    const T *dy, *x;

    __device__ Gradient(const void* dy, const void* dy_x, const float* coeffs, int k, int channel) : dy(static_cast<const T*>(dy)), x(static_cast<const T*>(dy_x)) {
        if (!DEFERRED) return;
        a = channels<8>(coeffs + channel), b = channels<8>(coeffs + k + channel), c = channels<8>(coeffs + 3 * k + channel);
        const Values<8> mean = channels<8>(coeffs + 2 * k + channel);
#pragma unroll
        for (int i = 0; i < 8; ++i) c[i] = fmaf(-b[i], mean[i], c[i]);
    }
    // from: in dy.
    __device__ Raw read(const T* from) const {
        Raw raw;
        raw.dy = *reinterpret_cast<const uint4*>(from);
        if (DEFERRED) raw.x = *reinterpret_cast<const uint4*>(x + (from - dy));
        return raw;
    }
    __device__ uint4 chunk(const Raw& raw) const {
        if (!DEFERRED) return raw.dy;
        Values<8> value = unpacked<T>(raw.dy);
        const Values<8> in = unpacked<T>(raw.x);
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] = fmaf(a[i], value[i], fmaf(b[i], in[i], c[i]));
        return packed<false, T>(value);
    }
};

// body(Gradient)
template <class T, class Body>
__device__ inline void with_gradient(const BnReluConv2dBwd& args, int channel, Body&& body) {
    if (args.dy_coeffs)
        body(Gradient<T, true>(args.dy, args.dy_x, args.dy_coeffs, args.conv.k, channel));
    else
        body(Gradient<T, false>(args.dy, args.dy_x, args.dy_coeffs, args.conv.k, channel));
}

}  // namespace fused_preact::cuda
