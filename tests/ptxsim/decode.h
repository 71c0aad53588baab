// From a statement's text to an instruction. Each group of instructions decodes its own (decode_arithmetic, ...).
#pragma once
#include <set>

#include "program.h"

namespace ptxsim {

// Kinds: s(igned), u(nsigned), b(its), f(loat), h(alf: f16 and bf16), p(redicate).
struct Type {
    char kind;
    int bytes;
    bool bfloat = false;

    bool packed() const { return kind == 'h' && bytes == 4; }
};

Type type_of(const std::string& name);
std::string trimmed(const std::string& text);
// At separators outside of brackets.
std::vector<std::string> split(const std::string& text, char separator);

// "@%p1 ld.global.v2.u32 {%r1, %r2}, [%rd4+8]" taken apart.
struct Statement {
    std::string text, predicate;
    bool negated = false;
    std::vector<std::string> op, operands;

    explicit Statement(const std::string& text);
    bool has(const char* modifier) const;
    const std::string& root() const { return op[0]; }
    // The last modifier that is a type.
    Type type() const;
    Space space() const;
};

class Decoder {
  public:
    explicit Decoder(Kernel& kernel) : kernel_(kernel) {}

    int line = 0;

    // "name", or "%r<12>" for %r0 to %r11.
    void declare(const std::string& registers);
    void symbol(const std::string& name, uint64_t address) { symbols_[name] = address; }
    void label(const std::string& name) { labels_[name] = int(kernel_.code.size()); }
    void add(const std::string& statement);
    // After the last statement: targets of branches.
    void link();

    // For the groups: operands of the instruction that is being decoded.
    void to(Instruction& in, const std::string& operand);
    void from(Instruction& in, const Statement& s, size_t first, Type type);
    void address(Instruction& in, const std::string& operand, int64_t& offset);
    int constant(uint64_t value);
    void branch(Instruction& in, const std::string& label);

  private:
    Kernel& kernel_;
    std::map<std::string, int> registers_, labels_;
    std::set<std::string> families_;  // %r, %rd, ...
    std::map<uint64_t, int> constants_;
    std::map<std::string, uint64_t> symbols_;
    std::vector<std::pair<size_t, std::string>> branches_;

    int reg(const std::string& name);
    int operand(const std::string& text, Type type);
    void each(const std::string& operand, Type type, std::vector<int>& registers);
};

// Each says whether the instruction is one of its own.
using DecodeGroup = bool (*)(Decoder&, const Statement&, Instruction&);
bool decode_control(Decoder&, const Statement&, Instruction&);
bool decode_arithmetic(Decoder&, const Statement&, Instruction&);
bool decode_bits(Decoder&, const Statement&, Instruction&);
bool decode_half(Decoder&, const Statement&, Instruction&);
bool decode_convert(Decoder&, const Statement&, Instruction&);
bool decode_memory(Decoder&, const Statement&, Instruction&);
bool decode_copy(Decoder&, const Statement&, Instruction&);
bool decode_warp(Decoder&, const Statement&, Instruction&);
bool decode_matrix(Decoder&, const Statement&, Instruction&);

}  // namespace ptxsim
