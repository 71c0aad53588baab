#include "decode.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

namespace ptxsim {

std::string trimmed(const std::string& text) {
    const size_t first = text.find_first_not_of(" \t\n"), last = text.find_last_not_of(" \t\n");
    return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

std::vector<std::string> split(const std::string& text, char separator) {
    std::vector<std::string> parts;
    std::string part;
    int depth = 0;
    for (const char c : text) {
        depth += c == '{' || c == '[' || c == '(';
        depth -= c == '}' || c == ']' || c == ')';
        if (c == separator && depth == 0) {
            parts.push_back(trimmed(part));
            part.clear();
        } else {
            part += c;
        }
    }
    if (!trimmed(part).empty()) parts.push_back(trimmed(part));
    return parts;
}

Type type_of(const std::string& name) {
    if (name == "pred") return {'p', 1};
    if (name == "f16x2" || name == "bf16x2") return {'h', 4, name[0] == 'b'};
    if (name == "f16" || name == "bf16") return {'h', 2, name[0] == 'b'};
    if (name == "tf32") return {'b', 4};
    const int bits = name.size() > 1 ? atoi(name.c_str() + 1) : 0;
    if (!strchr("sufb", name[0]) || (bits != 8 && bits != 16 && bits != 32 && bits != 64 && bits != 128)) throw Unsupported("type " + name);
    return {name[0], bits / 8};
}

static bool is_type(const std::string& name) {
    static const char* const names[] = {"pred", "f16", "bf16", "f16x2", "bf16x2", "tf32"};
    if (std::find(std::begin(names), std::end(names), name) != std::end(names)) return true;
    return name.size() > 1 && strchr("sufb", name[0]) && name.find_first_not_of("0123456789", 1) == std::string::npos;
}

Statement::Statement(const std::string& given) : text(given) {
    std::string rest = given;
    if (rest[0] == '@') {
        const size_t end = rest.find_first_of(" \t");
        negated = rest[1] == '!';
        predicate = rest.substr(negated ? 2 : 1, end - (negated ? 2 : 1));
        rest = trimmed(rest.substr(end));
    }
    const size_t end = rest.find_first_of(" \t");
    op = split(rest.substr(0, end), '.');
    if (end != std::string::npos) operands = split(rest.substr(end), ',');
}

bool Statement::has(const char* modifier) const { return std::find(op.begin() + 1, op.end(), modifier) != op.end(); }

Type Statement::type() const {
    for (size_t i = op.size(); i-- > 1;)
        if (is_type(op[i])) return type_of(op[i]);
    return {'b', 4};
}

Space Statement::space() const {
    for (const std::string& part : op) {
        if (part == "global" || part == "const") return Space::global;
        if (part == "shared" || part == "shared::cta") return Space::shared;
        if (part == "param") return Space::parameter;
        if (part == "local") return Space::local;
    }
    return Space::generic;
}

void Decoder::declare(const std::string& registers) {
    const size_t range = registers.find('<');
    if (range == std::string::npos)
        reg(registers);
    else
        families_.insert(registers.substr(0, range));
}

int Decoder::reg(const std::string& name) {
    const auto found = registers_.find(name);
    return found != registers_.end() ? found->second : registers_[name] = kernel_.registers++;
}

int Decoder::constant(uint64_t value) {
    const auto found = constants_.find(value);
    if (found != constants_.end()) return found->second;
    kernel_.constants.push_back({kernel_.registers, value});
    return constants_[value] = kernel_.registers++;
}

int Decoder::operand(const std::string& text, Type type) {
    static const char* const specials[] = {"%tid", "%ntid", "%ctaid", "%nctaid", "%laneid", "%warpid", "%dynamic_smem_size"};
    if (text == "_") return reg("%sink");
    if (text[0] == '%') {
        const std::string name = text.substr(0, text.find('.'));
        const bool special = std::find(std::begin(specials), std::end(specials), name) != std::end(specials);
        if (special && !registers_.count(text)) kernel_.specials.push_back({kernel_.registers, text});
        const std::string family = name.substr(0, name.find_last_not_of("0123456789") + 1);
        if (!special && !registers_.count(text) && !families_.count(family)) throw Unsupported("register " + text);
        return reg(text);
    }
    if (isdigit(text[0]) || text[0] == '-') {
        // 0f3F800000 and 0d... are bits of a float.
        if (text.size() > 2 && strchr("fFdD", text[1])) return constant(strtoull(text.c_str() + 2, nullptr, 16));
        const uint64_t value = text[0] == '-' ? uint64_t(strtoll(text.c_str(), nullptr, 0)) : strtoull(text.c_str(), nullptr, 0);
        return constant(type.bytes >= 8 ? value : value & ((uint64_t(1) << 8 * type.bytes) - 1));
    }
    if (registers_.count(text)) return reg(text);  // declared in inline assembly, without a %
    const auto symbol = symbols_.find(text);
    if (symbol == symbols_.end()) throw Unsupported("symbol " + text);
    return constant(symbol->second);
}

void Decoder::each(const std::string& text, Type type, std::vector<int>& registers) {
    if (text[0] == '{')
        for (const std::string& part : split(text.substr(1, text.size() - 2), ',')) registers.push_back(operand(part, type));
    else
        registers.push_back(operand(text, type));
}

void Decoder::to(Instruction& in, const std::string& text) {
    for (const std::string& part : split(text, '|')) each(part, {'u', 8}, in.to);
}

void Decoder::from(Instruction& in, const Statement& s, size_t first, Type type) {
    for (size_t i = first; i < s.operands.size(); ++i) each(s.operands[i], type, in.from);
}

void Decoder::address(Instruction& in, const std::string& text, int64_t& offset) {
    const std::string inner = text.substr(1, text.size() - 2);
    const size_t plus = inner.find('+');
    offset = plus == std::string::npos ? 0 : strtoll(inner.c_str() + plus + 1, nullptr, 0);
    in.from.push_back(operand(trimmed(inner.substr(0, plus)), {'u', 8}));
}

void Decoder::branch(Instruction&, const std::string& label) { branches_.push_back({kernel_.code.size(), label}); }

void Decoder::add(const std::string& text) {
    static constexpr DecodeGroup GROUPS[] = {decode_memory, decode_arithmetic, decode_bits,   decode_half,  decode_convert,
                                             decode_copy,   decode_warp,       decode_matrix, decode_control};
    const Statement s(text);
    Instruction in;
    in.line = line;
    in.text = text;
    if (!s.predicate.empty()) {
        in.predicate = reg(s.predicate);
        in.negated = s.negated;
    }
    for (const DecodeGroup decode : GROUPS) {
        Instruction decoded = in;
        if (decode(*this, s, decoded)) {
            kernel_.code.push_back(std::move(decoded));
            return;
        }
    }
    throw Unsupported(text);
}

void Decoder::link() {
    for (const auto& [at, name] : branches_) {
        const auto label = labels_.find(name);
        if (label == labels_.end()) throw Unsupported("label " + name);
        kernel_.code[at].target = label->second;
    }
}

}  // namespace ptxsim
