// The plain data that enters the kernels: raw pointers, sizes, numbers.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fused_preact {

enum class Dtype : int32_t { float32, float64, bfloat16 };

// What a launcher returns. `workspace`: bytes needed, more than were given; nothing was computed.
struct Status {
    const char* error = nullptr;
    size_t workspace = 0;
};

struct Workspace {
    void* data = nullptr;
    size_t bytes = 0;
};

// One spatial axis of a convolution.
struct Axis {
    int64_t in, kernel, stride, padding, dilation, out;
};

// x (n, c, h.in, w.in) and y (n, k, h.out, w.out) are dense NHWC; weight (k, c/groups, h.kernel, w.kernel) has any strides.
struct Conv {
    int64_t n, c, k, groups;
    Axis h, w;
    int64_t weight_strides[4];
};

enum class Emit : int32_t { none, dz, g, sums, dx, dx_sums };

// Per-channel vectors and statistics are float32, float64 for float64 activations; bias is of the activations' dtype. The five rows of bn
// (mean, invstd, scale, beta, 1/M) are bn_pitch elements apart.
struct BnReluConv2dFwd {
    Dtype dtype;
    int threads;
    Conv conv;
    bool relu;
    const void *x, *bn;
    int64_t bn_pitch;
    const void *weight, *bias, *residual;
    void* y;  // may be residual
    void* stats;  // [tiles, 3, k], or null
    int64_t tiles;
    Workspace workspace;
};

// A gradient dy: as it is, or deferred, a*dy + b*(x - mean) + c (+ add), coeffs = [a, b, mean, c]; written to `out` if that is given.
struct Gradient {
    const void *dy, *x, *coeffs, *add;
    void* out;
};

struct BnReluConv2dBwd {
    Dtype dtype;
    int threads;
    Conv conv;
    bool relu;
    Emit emit;
    Gradient dy;
    const void *x, *bn;
    int64_t bn_pitch;
    const void *weight, *add_dz, *coeffs, *residual_grad;
    void* out;
    void* sums;  // [tiles, 2, c]
    int64_t tiles;
    void* dweight;  // with the strides of weight
    void* dbias;
    Workspace workspace;
};

// An activation of `pixels` x `channels`, and what the element-wise primitives read and write; out may be grad.
struct Elementwise {
    Dtype dtype;
    int threads;
    int64_t pixels, channels, tiles;
    bool relu;
    const void *x, *bn;
    int64_t bn_pitch;
    const void *grad, *coeffs, *add;
    void *out, *stats;
    Workspace workspace;
};

struct BnFinalize {
    bool wide;  // float64 vectors
    bool frozen;
    int64_t tiles, channels;
    const void *stats, *gamma, *beta;
    void *running_mean, *running_var;  // or null
    double momentum, eps;
    void* bn;
    int64_t bn_pitch;
};

struct BnCoeffs {
    bool wide;
    int64_t tiles, channels;
    const void *sums, *bn;
    int64_t bn_pitch;
    void *coeffs, *dgamma, *dbeta;
};

}  // namespace fused_preact
