// The launchers.
#pragma once
#include "records.h"

namespace fused_preact::cuda {

// CUDA versions, such as 13000: the driver's newest (0: there is none), and the one that the library was built with.
struct Versions {
    int driver, runtime;
};
Versions versions();

Status launch_bn_stats(const Elementwise&);
Status launch_bn_relu(const Elementwise&);
Status launch_bn_relu_bwd(const Elementwise&);
Status launch_bn_bwd(const Elementwise&);

Status launch_bn_relu_conv2d_fwd(const BnReluConv2dFwd&);
// For convolutions that are not pointwise; the former calls it.
Status launch_bn_relu_conv2d_fwd_window(const BnReluConv2dFwd&);

Status launch_bn_relu_conv2d_bwd(const BnReluConv2dBwd&);
// Its parts: out and sums; parts of dweight; their sum.
Status launch_bn_relu_conv2d_dgrad(const BnReluConv2dBwd&);
Status launch_bn_relu_conv2d_dgrad_window(const BnReluConv2dBwd&);
Status launch_bn_relu_conv2d_wgrad(const BnReluConv2dBwd&);
// For convolutions that are not pointwise; the former calls it.
Status launch_bn_relu_conv2d_wgrad_window(const BnReluConv2dBwd&);
Status launch_bn_relu_conv2d_wgrad_sum(const BnReluConv2dBwd&);

// One tile of statistics, (count, mean, m2), from many.
Status launch_bn_merge(const BnFinalize&);
Status launch_bn_finalize(const BnFinalize&);
Status launch_bn_coeffs(const BnCoeffs&);

}  // namespace fused_preact::cuda
