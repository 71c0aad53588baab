// The primitives on per-channel vectors: small, in double, the same for every instruction set.
#pragma once
#include "records.h"

namespace fused_preact {

void launch_bn_merge(bool wide, int64_t tiles, int64_t channels, const void* stats, void* out);
void launch_bn_finalize(const BnFinalize&);
void launch_bn_coeffs(const BnCoeffs&);

}  // namespace fused_preact
