// bn(x) in registers, by the same arithmetic in every kernel: so a backward's mask is the forward's.
#pragma once
#include "chunk.cuh"

namespace fused_preact::cuda {

// bn(x) = (x - mean)*scale + beta for N channels of an activation of type T; of 16-bit values x*scale + (beta - mean*scale),
// whose rounding is far below theirs.
template <class T, int N>
struct Norm {
    static constexpr bool CENTRED = sizeof(T) == 4;
    static constexpr int VECTORS = CENTRED ? 3 : 2;  // that it reads
    Values<N> mean, scale, shift;

    Norm() = default;
    // bn: the vectors of docs/design.md, `pitch` apart, from the first of these channels on.
    __device__ Norm(const float* bn, int64_t pitch) : mean(channels<N>(bn)), scale(channels<N>(bn + 2 * pitch)), shift(channels<N>(bn + 3 * pitch)) {
        if constexpr (!CENTRED)
#pragma unroll
            for (int i = 0; i < N; ++i) shift[i] = fmaf(-mean[i], scale[i], shift[i]);
    }
    __device__ float operator()(float x, int i) const { return fmaf(CENTRED ? x - mean[i] : x, scale[i], shift[i]); }
};

// a*g + b*(x - mean) + c, the gradient of x, likewise: of 16-bit values a*g + (b*x + (c - b*mean)).
template <class T, int N>
struct NormGrad {
    Values<N> a, b, mean, shift;

    NormGrad() = default;
    // coeffs: (a, b, mean, c), `pitch` apart, from the first of these channels on.
    __device__ NormGrad(const float* coeffs, int pitch)
        : a(channels<N>(coeffs)), b(channels<N>(coeffs + pitch)), mean(channels<N>(coeffs + 2 * pitch)), shift(channels<N>(coeffs + 3 * pitch)) {
        if constexpr (!Norm<T, N>::CENTRED)
#pragma unroll
            for (int i = 0; i < N; ++i) shift[i] = fmaf(-b[i], mean[i], shift[i]);
    }
    __device__ float operator()(float g, float x, int i) const {
        return fmaf(a[i], g, fmaf(b[i], Norm<T, N>::CENTRED ? x - mean[i] : x, shift[i]));
    }
};

}  // namespace fused_preact::cuda
