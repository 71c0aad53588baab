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

// How blocks go over an activation of pixels x channels, dense NHWC. A block has `columns` threads across the chunks of 16 bytes of a pixel
// (across its channels, if they are not a whole number of chunks) and `rows` down the pixels; `blocks` share out the pixels.
struct Grid {
    int columns, rows, blocks;
};

// Per-channel vectors and sums are float32; all memory starts at multiples of 16 bytes. bn: (mean, invstd, scale, beta, 1/M), coeffs: (a, b, mean, c), rows `pitch` apart.
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
    float* sums;      // [tiles, 3, channels], of a gradient [tiles, 2, channels]; a tile for each block, zeros in others
    int tiles;
};

// What a block of a convolution computes at a time, `pixels` x `out` channels from `slab` input channels; how many blocks share out the
// pixels, and their bytes of shared memory.
struct ConvTile {
    int pixels, slab, out, blocks, shared;
};

// A 1x1 convolution of stride 1: y [pixels, k] = relu(bn(x [pixels, c])) * weight [k, c], transposed, + bias + residual.
struct BnReluConv2dFwd {
    Target target;
    ConvTile tile;
    Dtype dtype;  // 16 bits
    int64_t pixels;
    int c, k;  // multiples of 8
    bool relu;
    const void* x;
    const float* bn;  // or null
    int64_t bn_pitch;
    const void* weight;
    const float* bias;     // or null
    const void* residual;  // or null
    void* y;
    float* stats;  // [stats_tiles, 3, k], or null; a tile for each block, zeros in others
    int stats_tiles;
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
