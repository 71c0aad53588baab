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
// Of it: all but dweight, of which there are parts; and what adds them up.
Status launch_bn_relu_conv2d_gradients(const BnReluConv2dBwd&);
PartSum part_sum_of(const BnReluConv2dBwd&);
// Of gradients: out and sums, by windows where the convolution is not pointwise, and parts of dweight likewise.
Status launch_bn_relu_conv2d_dgrad(const BnReluConv2dBwd&);
Status launch_bn_relu_conv2d_dgrad_window(const BnReluConv2dBwd&);
Status launch_bn_relu_conv2d_wgrad(const BnReluConv2dBwd&);
Status launch_bn_relu_conv2d_wgrad_window(const BnReluConv2dBwd&);
Status launch_bn_relu_conv2d_wgrad_sum(const PartSums&);

// One tile of statistics, (count, mean, m2), from many.
Status launch_bn_merge(const BnFinalize&);
Status launch_bn_finalize(const BnFinalize&);
Status launch_bn_coeffs(const BnCoeffs&);

}  // namespace fused_preact::cuda
