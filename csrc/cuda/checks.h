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

inline const char* impossible(const BnReluConv2dFwd& a) {
    if (a.dtype == Dtype::float32) return "expected a dtype of 16 bits";
    if (a.pixels < 1 || a.c < 8 || a.k < 8 || a.c % 8 || a.k % 8) return "expected a pixel, and channels in multiples of 8";
    if (a.tile.pixels < 1 || a.tile.blocks < 1 || a.tile.blocks > (a.pixels + a.tile.pixels - 1) / a.tile.pixels) return "expected no more blocks than tiles";
    if (a.stats && a.tile.blocks > a.stats_tiles) return "expected a tile of statistics for each block";
    return a.x && a.weight && a.y ? nullptr : "x, weight and y must be given";
}

}  // namespace fused_preact::cuda
