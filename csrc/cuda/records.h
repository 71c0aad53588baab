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

// One axis of a convolution.
struct Axis {
    int in, out, kernel, stride, padding, dilation;
};

// x [n, y.in, x.in, c] with weight [k, y.kernel, x.kernel, c] gives [n, y.out, x.out, k]; c and k come in whole chunks of 16 bytes.
struct Conv {
    int n, c, k;
    Axis y, x;

    constexpr int64_t inputs() const { return int64_t(n) * y.in * x.in; }
    constexpr int64_t outputs() const { return int64_t(n) * y.out * x.out; }
    constexpr int taps() const { return y.kernel * x.kernel; }
    // Every output pixel reads the input pixel at its place, and no other.
    bool pointwise() const { return own_pixel(y) && own_pixel(x); }
    bool dense_3x3() const { return dense_3(y) && dense_3(x); }

  private:
    static bool own_pixel(const Axis& a) { return a.kernel == 1 && a.stride == 1 && a.padding == 0; }
    static bool dense_3(const Axis& a) { return a.kernel == 3 && a.stride == 1 && a.dilation == 1; }
};

// What a block of a convolution computes at a time, `pixels` x `out` channels from `slab` channels to be summed over; how many blocks share
// out the pixels, and their bytes of shared memory.
struct ConvTile {
    int pixels, slab, out, blocks, shared;
};

// y = conv(relu(bn(x)), weight) + bias + residual
struct BnReluConv2dFwd {
    Target target;
    ConvTile tile;
    Dtype dtype;  // float32: multiplied as tf32
    Conv conv;
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

// What a block of a weight's gradient computes, `k` x `c` of it for some of the taps, from tiles of `pixels`; how many blocks share out the tiles,
// a part of the gradient each, and their bytes of shared memory.
struct WgradTile {
    int pixels, k, c, parts, shared;
};

// What becomes of dz: docs of bn_relu_conv2d_bwd in fused_preact/ops/conv.py.
enum class Emit : int32_t { none, dz, g, sums, dx, dx_sums };

// dz = transposed conv(dy, weight) + add_dz, where dy may be deferred: a*dy + b*(dy_x - mean) + c. dweight = conv_wgrad(dy, z).
struct BnReluConv2dBwd {
    Target target;
    ConvTile dgrad;   // of channels of x from channels of dy; for Emit::none of no blocks
    WgradTile wgrad;  // without dweight of no parts; of no pixels, if the blocks of dgrad give a part each
    Dtype dtype;      // float32: multiplied as tf32
    Conv conv;
    bool relu = false;
    Emit emit = Emit::none;
    const void* dy = nullptr;
    const void* dy_x = nullptr;        // or null
    const float* dy_coeffs = nullptr;  // [4, k], or null
    const void* x = nullptr;
    const float* bn = nullptr;  // or null
    int64_t bn_pitch = 0;
    const void* weight = nullptr;
    const void* add_dz = nullptr;         // or null
    const float* coeffs = nullptr;        // [4, c], of dx
    const void* residual_grad = nullptr;  // or null; of dx
    void* out = nullptr;
    float* sums = nullptr;  // [sums_tiles, 2, c]; a tile for each block, zeros in others
    int sums_tiles = 0;
    float* parts = nullptr;  // [wgrad.parts, k, taps, c]
    void* dweight = nullptr;
    bool taps_last = false;  // dweight is [k, c, taps] in memory, not [k, taps, c]
};

// dweight from its parts, [count, size]; taps: of a dweight that is [k, c, taps] in memory, 1: it lies as the parts do.
struct PartSum {
    const float* parts;
    int count, size, c, taps;
    void* dweight;
    int columns;  // threads of a block across: the launcher's choice
};

// Of several convolutions: those of a unit and its shortcut.
struct PartSums {
    static constexpr int MOST = 4;
    Target target;
    Dtype dtype;
    int count = 0;
    PartSum of[MOST];
};

struct BnFinalize {
    Target target;
    int tiles = 0, channels = 0;
    const float *stats = nullptr, *gamma = nullptr, *beta = nullptr;  // gamma, beta: or null
    float *running_mean = nullptr, *running_var = nullptr;            // or null
    int64_t* num_batches_tracked = nullptr;  // or null; counted here, unless the average is cumulative: then this batch is counted
    bool cumulative = false;
    float momentum = 0, eps = 0;
    bool frozen = false;  // then the running statistics stay, and are the statistics if no others are given
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
