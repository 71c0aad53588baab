#include "kernels.h"

namespace fused_preact::cuda {

Status launch_bn_relu_conv2d_dgrad(const BnReluConv2dBwd&) { return {"not there yet"}; }

}  // namespace fused_preact::cuda
