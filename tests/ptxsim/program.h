// A kernel as the machine executes it: instructions whose operands are numbered registers.
#pragma once
#include <memory>

#include "types.h"

namespace ptxsim {

struct Machine;
struct Warp;
struct Instruction;

// Executes an instruction for the lanes of the mask.
using Handler = void (*)(Machine&, Warp&, const Instruction&, uint32_t lanes);

enum class Space : uint8_t { generic, global, shared, parameter, local };

// Shared memory begins at an address that is not null; generic addresses of the two inner spaces have windows of their own.
constexpr uint32_t SHARED_BASE = 0x400;
constexpr uint64_t SHARED_WINDOW = 0xF000000000000000ull, LOCAL_WINDOW = 0xE000000000000000ull;

struct Instruction {
    Handler run = nullptr;
    std::vector<int> to, from;  // registers
    int predicate = -1;
    bool negated = false;  // the predicate
    bool collective = false;  // waits for the lanes of its mask; the mask is the last operand, or all of the warp
    bool masked = false;
    int target = -1;  // of a branch
    int64_t offset = 0, second_offset = 0;
    Space space = Space::generic;
    int bytes = 4, vector = 1;
    bool is_signed = false;
    // What else a handler wants to know: a comparison, a rounding, a variant.
    int variant = 0, second_variant = 0;
    bool flag = false;
    int line = 0;
    std::string text;
};

struct Parameter {
    std::string name;
    size_t offset, bytes;
};

struct Constant {
    int reg;
    uint64_t value;
};

struct SpecialRegister {
    int reg;
    std::string name;  // %tid.x, ...
};

struct Kernel {
    std::string name;
    std::vector<Parameter> parameters;
    size_t parameter_bytes = 0, shared_bytes = 0, local_bytes = 0;  // of static shared memory
    bool dynamic_shared = false;
    int registers = 0;
    std::vector<Constant> constants;
    std::vector<SpecialRegister> specials;
    std::vector<Instruction> code;
};

// Dynamic shared memory follows the static.
inline size_t dynamic_shared_offset(const Kernel& k) { return (k.shared_bytes + 127) / 128 * 128; }

struct Module {
    std::map<std::string, std::unique_ptr<Kernel>> kernels;

    explicit Module(const std::string& ptx);
};

}  // namespace ptxsim
