// Which instruction set runs. Every set has a table of kernels, compiled from the same sources with other flags.
#pragma once

#include <vector>

namespace fused_preact {

struct Kernels;

namespace scalar {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512_bf16 {
extern const Kernels table;
}

// The sets that are compiled in and that this machine supports, from the least to the most.
std::vector<const char*> isas();

// The one in use: FUSED_PREACT_CPU_ISA where it names one of isas(), otherwise the last of them.
const char* isa();

// Another one from now on, for tests; false if it is none of isas().
bool set_isa(const char* name);

// The table of the one in use.
const Kernels& kernels();

}  // namespace fused_preact
