#include "dispatch.h"

#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace fused_preact {
namespace {

struct Isa {
    const char* name;
    const Kernels* table;
    bool (*supported)();
};

#ifdef __x86_64__
// __builtin_cpu_supports asks the operating system too, which has to save the registers.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

const Isa ISAS[] = {
    {"scalar", &scalar::table, [] { return true; }},
#ifdef FUSED_PREACT_HAS_avx2
    {"avx2", &avx2::table, has_avx2},
#endif
#ifdef FUSED_PREACT_HAS_avx512
    {"avx512", &avx512::table, has_avx512},
#endif
#ifdef FUSED_PREACT_HAS_avx512_bf16
    {"avx512_bf16", &avx512_bf16::table, has_avx512_bf16},
#endif
};

const Isa* find(const char* name) {
    for (const Isa& one : ISAS)
        if (name && one.supported() && !std::strcmp(one.name, name)) return &one;
    return nullptr;
}

const Isa* choose(const char* forced) {
    const Isa* chosen = find(forced);
    return chosen ? chosen : find(isas().back());
}

const Isa*& current() {
    static const Isa* chosen = choose(std::getenv("FUSED_PREACT_CPU_ISA"));
    return chosen;
}

}  // namespace

std::vector<const char*> isas() {
    std::vector<const char*> names;
    for (const Isa& one : ISAS)
        if (one.supported()) names.push_back(one.name);
    return names;
}

const char* isa() { return current()->name; }

bool set_isa(const char* name) {
    const Isa* found = find(name);
    if (found) current() = found;
    return found;
}

const Kernels& kernels() { return *current()->table; }

}  // namespace fused_preact
