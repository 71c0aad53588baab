// The backward of a convolution: one kernel for both gradients or one for each, and the sum of the parts of dweight.
#include "kernels.h"

namespace fused_preact::cuda {

Status launch_bn_relu_conv2d_bwd(const BnReluConv2dBwd& args) {
    Status status;
    if (args.emit != Emit::none) status = launch_bn_relu_conv2d_dgrad(args);
    if (!status.error && args.wgrad.pixels) status = launch_bn_relu_conv2d_wgrad(args);
    if (!status.error && args.dweight) status = launch_bn_relu_conv2d_wgrad_sum(args);
    return status;
}

}  // namespace fused_preact::cuda
