// The primitives on per-channel vectors: small, in double, the same for every instruction set.
#pragma once
#include "records.h"

namespace fused_preact {

void launch_bn_merge(bool wide, int64_t tiles, int64_t channels, const void* stats, void* out);
void launch_bn_finalize(const BnFinalize&);
void launch_bn_coeffs(const BnCoeffs&);

// Running statistics as one pseudo-tile: count 1, mean, var.
void frozen_stats(bool wide, int64_t channels, const void* running_mean, const void* running_var, void* stats);

}  // namespace fused_preact
