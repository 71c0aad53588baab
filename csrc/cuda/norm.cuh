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

}  // namespace fused_preact::cuda
