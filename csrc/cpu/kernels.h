// What every instruction set offers: one table of launchers each.
#pragma once
#include "records.h"

namespace fused_preact {

struct Kernels {
    Status (*bn_relu_conv2d_fwd)(const BnReluConv2dFwd&);
    Status (*bn_relu_conv2d_bwd)(const BnReluConv2dBwd&);
    Status (*bn_stats)(const Elementwise&);
    Status (*bn_relu)(const Elementwise&);
    Status (*bn_relu_bwd)(const Elementwise&);
    Status (*bn_bwd)(const Elementwise&);
    // Multiply-adds a second of all threads together, from an L1-resident loop: the ceiling in this minute.
    double (*probe)(Dtype, int threads, double seconds);
};

}  // namespace fused_preact

#ifdef FUSED_PREACT_ISA
namespace fused_preact::FUSED_PREACT_ISA {

Status launch_bn_relu_conv2d_fwd(const BnReluConv2dFwd&);
Status launch_bn_relu_conv2d_bwd(const BnReluConv2dBwd&);
Status launch_bn_stats(const Elementwise&);
Status launch_bn_relu(const Elementwise&);
Status launch_bn_relu_bwd(const Elementwise&);
Status launch_bn_bwd(const Elementwise&);
double launch_probe(Dtype, int threads, double seconds);

}  // namespace fused_preact::FUSED_PREACT_ISA
#endif
