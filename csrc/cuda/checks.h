// Records that no kernel could run: a sentence, or null. Python checks its arguments first, so these tell of mistakes in Python.
#pragma once
#include "records.h"

namespace fused_preact::cuda {

inline const char* impossible(const Elementwise& a) {
    if (a.pixels < 0 || a.channels < 1) return "expected at least one channel";
    if (a.grid.columns < 1 || a.grid.rows < 1 || a.grid.blocks < 1 || a.grid.columns * a.grid.rows > 1024) return "expected blocks of 1 to 1024 threads";
    if (a.sums && (a.tiles < 1 || a.grid.blocks > a.tiles)) return "expected a tile for each block";
    if (!a.x || !(a.out || a.sums)) return "x and the result must be given";
    if (a.grad ? !(a.bn && a.sums) && !(a.coeffs && a.out) : a.bn ? !a.out : !a.sums) return "a tensor is missing";
    return nullptr;
}

inline const char* impossible(const BnFinalize& a) {
    if (a.tiles < 0 || a.channels < 1 || (a.tiles && !a.stats) || !a.bn) return "expected statistics of at least one channel, and the result";
    if (!a.running_mean != !a.running_var || (a.running_mean && a.cumulative && !a.num_batches_tracked)) return "a buffer is missing";
    return nullptr;
}

inline const char* impossible(const BnCoeffs& a) {
    if (a.tiles < 0 || a.channels < 1 || (a.tiles && !a.sums)) return "expected sums of at least one channel";
    return a.bn && a.coeffs && a.dgamma && a.dbeta ? nullptr : "a tensor is missing";
}

// (padded input - reach of the kernel) / stride + 1
inline bool impossible(const Axis& a) {
    if (a.in < 1 || a.out < 1 || a.kernel < 1 || a.stride < 1 || a.padding < 0 || a.dilation < 1) return true;
    const int room = a.in + 2 * a.padding - a.dilation * (a.kernel - 1) - 1;
    return room < 0 || a.out != room / a.stride + 1;
}

inline const char* impossible(const Conv& a, Dtype dtype) {
    const int chunk = dtype == Dtype::float32 ? 4 : 8;
    if (a.n < 1 || a.c < chunk || a.k < chunk || a.c % chunk || a.k % chunk) return "expected a pixel, and channels in whole chunks of 16 bytes";
    if (impossible(a.y) || impossible(a.x)) return "expected a kernel that fits the padded input, and the output that it gives";
    return nullptr;
}

inline const char* impossible(const BnReluConv2dFwd& a) {
    if (const char* error = impossible(a.conv, a.dtype)) return error;
    if (a.tile.pixels < 1 || a.tile.blocks < 1) return "expected a tile of some pixels, and blocks";
    if (a.stats && a.tile.blocks > a.stats_tiles) return "expected a tile of statistics for each block";
    return a.x && a.weight && a.y ? nullptr : "x, weight and y must be given";
}

inline const char* impossible(const BnReluConv2dBwd& a) {
    if (const char* error = impossible(a.conv, a.dtype)) return error;
    const bool dx = a.emit == Emit::dx || a.emit == Emit::dx_sums, sums = a.emit == Emit::g || a.emit == Emit::sums || a.emit == Emit::dx_sums;
    if ((a.emit != Emit::none) != (a.dgrad.blocks > 0) || !!a.dweight != (a.wgrad.parts > 0)) return "expected a tile for each gradient that is wanted, and no other";
    if (a.dweight && a.wgrad.pixels == 0 && a.wgrad.parts != a.dgrad.blocks) return "expected a part of dweight from each block";
    if (a.dweight && a.wgrad.pixels == 0 && (a.conv.c > a.dgrad.out || a.conv.k > a.dgrad.slab)) return "expected all channels in a block that gives a part of dweight";
    if (a.dweight && a.wgrad.pixels == 0 && dx) return "expected a tile of dweight's own beside dx";
    if (sums && a.dgrad.blocks > a.sums_tiles) return "expected a tile of sums for each block";
    if (!a.dy || !a.x || !a.weight || !a.dy_x != !a.dy_coeffs || !a.dweight != !a.parts) return "a tensor is missing";
    if (sums != !!a.sums || dx != !!a.coeffs || (a.emit != Emit::none && a.emit != Emit::sums) != !!a.out) return "expected the results of emit, and no others";
    if ((sums || dx) && !a.bn) return "expected bn, whose gradients they are";
    return nullptr;
}

inline const char* impossible(const PartSums& a) {
    if (a.count < 1 || a.count > PartSums::MOST) return "expected one to four gradients";
    for (int i = 0; i < a.count; ++i)
        if (a.of[i].count < 1 || a.of[i].size < 1 || a.of[i].size % 4 || !a.of[i].parts || !a.of[i].dweight) return "expected parts of a gradient";
    return nullptr;
}

}  // namespace fused_preact::cuda
