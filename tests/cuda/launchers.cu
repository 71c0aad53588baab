// The launchers of csrc/cuda, for the simulator.
#include "../../csrc/cuda/bn.cu"
#include "../../csrc/cuda/bn_vectors.cu"
#include "../../csrc/cuda/bn_relu_conv2d_fwd.cu"

using namespace fused_preact::cuda;

#define LAUNCHER(name, Record) \
    const char* name(const Record* args) { return launch_##name(*args).error; }

// CUDA's text if it fails, or null.
extern "C" {
LAUNCHER(bn_stats, Elementwise)
LAUNCHER(bn_relu, Elementwise)
LAUNCHER(bn_relu_bwd, Elementwise)
LAUNCHER(bn_bwd, Elementwise)
LAUNCHER(bn_relu_conv2d_fwd, BnReluConv2dFwd)
LAUNCHER(bn_merge, BnFinalize)
LAUNCHER(bn_finalize, BnFinalize)
LAUNCHER(bn_coeffs, BnCoeffs)
}
