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

// Per-channel vectors and sums are float32; all memory starts at multiples of 16 bytes. bn: (mean, invstd, scale, beta, 1/M), coeffs:
// (a, b, mean, c), rows `pitch` apart.
struct Elementwise {
    Target target;
    Grid grid;
    Dtype dtype;
    int64_t pixels = 0;
    int channels = 0;
    bool relu = false;
    const void* x = nullptr;
    const float* bn = nullptr;
    int64_t bn_pitch = 0;
    const void* grad = nullptr;
    const float* coeffs = nullptr;
    const void* add = nullptr;  // or null
    void* out = nullptr;        // may be grad; null: only the sums
    float* sums = nullptr;      // [tiles, 3, channels], of a gradient [tiles, 2, channels]; a tile for each block, zeros in others
    int tiles = 0;
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
    int64_t pixels = 0;
    int c = 0, k = 0;  // multiples of 8
    bool relu = false;
    const void* x = nullptr;
    const float* bn = nullptr;  // or null
    int64_t bn_pitch = 0;
    const void* weight = nullptr;
    const float* bias = nullptr;     // or null
    const void* residual = nullptr;  // or null
    void* y = nullptr;
    float* stats = nullptr;  // [stats_tiles, 3, k], or null; a tile for each block, zeros in others
    int stats_tiles = 0;
};

struct BnFinalize {
    Target target;
    int tiles = 0, channels = 0;
    const float *stats = nullptr, *gamma = nullptr, *beta = nullptr;  // gamma, beta: or null
    float *running_mean = nullptr, *running_var = nullptr;            // or null
    int64_t* num_batches_tracked = nullptr;  // or null; counted here, unless the average is cumulative: then this batch is counted
    bool cumulative = false;
    float momentum = 0, eps = 0;
    bool frozen = false;
    float* bn = nullptr;
    int64_t bn_pitch = 0;
};

struct BnCoeffs {
    Target target;
    int tiles = 0, channels = 0;
    const float *sums = nullptr, *bn = nullptr;
    int64_t bn_pitch = 0;
    float *coeffs = nullptr, *dgamma = nullptr, *dbeta = nullptr;
};

}  // namespace fused_preact::cuda
