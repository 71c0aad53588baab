// The plain data that enters the kernels: raw pointers, sizes, numbers. The host chose the grid.
#pragma once
#include <cstdint>

namespace fused_preact::cuda {

enum class Dtype : int32_t { float32, bfloat16, float16 };

// Where a launch goes, and CUDA's text if it fails.
struct Target {
    int device;
    uintptr_t stream;
};

struct Status {
    const char* error = nullptr;
};

// An activation of pixels x channels, dense NHWC, channels a multiple of 16 bytes. A block has `columns` threads across the chunks of 16
// bytes of a pixel and `rows` down the pixels; `blocks` share out the pixels, one for each tile where there are sums.
struct Grid {
    int columns, rows, blocks;
};

// Per-channel vectors and sums are float32. bn: (mean, invstd, scale, beta, 1/M), coeffs: (a, b, mean, c), rows `pitch` apart.
struct Elementwise {
    Target target;
    Grid grid;
    Dtype dtype;
    int64_t pixels;
    int channels;
    bool relu;
    const void* x;
    const float* bn;
    int64_t bn_pitch;
    const void* grad;
    const float* coeffs;
    const void* add;  // or null
    void* out;        // may be grad
    float* sums;      // [blocks, 3, channels], of a gradient [blocks, 2, channels]
};

struct BnFinalize {
    Target target;
    int tiles, channels;
    const float *stats, *gamma, *beta;  // gamma, beta: or null
    float *running_mean, *running_var;  // or null
    float momentum, eps;
    bool frozen;
    float* bn;
    int64_t bn_pitch;
};

struct BnCoeffs {
    Target target;
    int tiles, channels;
    const float *sums, *bn;
    int64_t bn_pitch;
    float *coeffs, *dgamma, *dbeta;
};

}  // namespace fused_preact::cuda
