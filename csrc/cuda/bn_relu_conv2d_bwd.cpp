// The backward of a convolution: one kernel for both gradients or one for each, and the sum of the parts of dweight.
#include "kernels.h"

namespace fused_preact::cuda {

Status launch_bn_relu_conv2d_gradients(const BnReluConv2dBwd& args) {
    Status status;
    if (args.emit != Emit::none) status = launch_bn_relu_conv2d_dgrad(args);
    if (!status.error && args.wgrad.pixels) status = launch_bn_relu_conv2d_wgrad(args);
    return status;
}

PartSum part_sum_of(const BnReluConv2dBwd& args) {
    const int taps = args.conv.taps();
    return {args.parts, args.wgrad.parts, args.conv.k * taps * args.conv.c, args.conv.c, args.taps_last ? taps : 1, args.dweight, 0};
}

Status launch_bn_relu_conv2d_bwd(const BnReluConv2dBwd& args) {
    const Status status = launch_bn_relu_conv2d_gradients(args);
    if (status.error || !args.dweight) return status;
    return launch_bn_relu_conv2d_wgrad_sum({args.target, args.dtype, 1, {part_sum_of(args)}});
}

}  // namespace fused_preact::cuda
