// A PTX file: comments away, declarations, and the statements of each kernel's body.
#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "decode.h"

namespace ptxsim {
namespace {

bool starts(const std::string& text, const char* with) { return text.compare(0, strlen(with), with) == 0; }

// One line without comments, which may go on from line to line.
std::string uncommented(const std::string& line, bool& inside) {
    std::string kept;
    for (size_t i = 0; i < line.size(); ++i) {
        if (inside) {
            if (line.compare(i, 2, "*/") == 0) inside = false, ++i;
        } else if (line.compare(i, 2, "//") == 0) {
            break;
        } else if (line.compare(i, 2, "/*") == 0) {
            inside = true, ++i;
        } else {
            kept += line[i];
        }
    }
    return trimmed(kept);
}

// ".loc file line column[, function_name NAME, inlined_at file line column]": the place in the kernel is the outermost, and the last.
int line_of(const std::string& loc) {
    int file = 0, line = 0, outer = 0;
    sscanf(loc.c_str(), ".loc %d %d", &file, &line);
    const size_t inlined = loc.rfind("inlined_at ");
    if (inlined != std::string::npos) sscanf(loc.c_str() + inlined, "inlined_at %d %d", &file, &outer);
    return outer ? outer : line;
}

// The whole text on one line; a .loc becomes a statement like any other.
std::string flattened(const std::string& ptx) {
    std::istringstream lines(ptx);
    std::string line, flat;
    for (bool inside = false; std::getline(lines, line);) {
        line = uncommented(line, inside);
        if (starts(line, ".file") || starts(line, ".version") || starts(line, ".target") || starts(line, ".address_size")) continue;
        flat += starts(line, ".loc\t") || starts(line, ".loc ") ? ".loc " + std::to_string(line_of(line)) + ";" : line + " ";
    }
    return flat;
}

// ".shared .align 16 .b8 name[1024]", ".param .u64 name", ".local .f32 name"
struct Declaration {
    std::string name;
    size_t bytes = 0, align = 1;

    explicit Declaration(const std::string& text) {
        const size_t bracket = text.find('['), end = bracket == std::string::npos ? text.size() : bracket;
        const size_t space = text.find_last_of(" \t", end - 1);
        name = trimmed(text.substr(space + 1, end - space - 1));
        size_t element = 1;
        std::istringstream words(text.substr(0, space));
        for (std::string word; words >> word;) {
            if (word == ".align") {
                words >> align;
            } else if (word.size() > 2 && strchr("sufb", word[1]) && isdigit(word[2])) {
                element = type_of(word.substr(1)).bytes;
            }
        }
        align = std::max(align, element);
        // Without a size in the brackets it is dynamic shared memory.
        bytes = bracket == std::string::npos ? element : element * strtoull(text.c_str() + bracket + 1, nullptr, 0);
    }

    // Its place after what is there already.
    size_t place(size_t& used) const {
        const size_t at = (used + align - 1) / align * align;
        used = at + bytes;
        return at;
    }
};

// Statements and labels; braces of inner scopes do not matter, because nvcc's names are unique, but those of operands do.
std::vector<std::string> statements(const std::string& body) {
    std::vector<std::string> found;
    std::string current;
    int depth = 0;
    for (const char c : body) {
        const std::string text = trimmed(current);
        if ((c == '{' || c == '}') && text.empty() && depth == 0) continue;
        depth += (c == '{') - (c == '}');
        if (c == ';') {
            if (!text.empty()) found.push_back(text);
            current.clear();
        } else if (c == ':' && depth == 0 && !text.empty() && text.find_first_of(" \t.") == std::string::npos) {
            found.push_back(text + ":");
            current.clear();
        } else {
            current += c;
        }
    }
    return found;
}

struct Shared {
    std::vector<Declaration> fixed, dynamic;

    void add(const std::string& text) {
        const Declaration declared(text);
        (declared.bytes ? fixed : dynamic).push_back(declared);
    }
};

std::unique_ptr<Kernel> kernel(const std::string& head, const std::string& body, const Shared& module_shared) {
    auto k = std::make_unique<Kernel>();
    Decoder decoder(*k);
    const size_t entry = head.find(".entry") + 6, open = head.find('(', entry), close = head.find(')', entry);
    k->name = trimmed(head.substr(entry, open - entry));
    if (open != std::string::npos)
        for (const std::string& text : split(head.substr(open + 1, close - open - 1), ',')) {
            const Declaration declared(text);
            const size_t at = declared.place(k->parameter_bytes);
            k->parameters.push_back({declared.name, at, declared.bytes});
            decoder.symbol(declared.name, at);
        }
    Shared shared = module_shared;
    const std::vector<std::string> all = statements(body);
    for (const std::string& s : all) {
        if (starts(s, ".shared")) shared.add(s);
        if (starts(s, ".local")) {
            const Declaration declared(s);
            decoder.symbol(declared.name, declared.place(k->local_bytes));
        }
    }
    // Of what the module declares, a kernel has what it names.
    for (const Declaration& declared : shared.fixed)
        if (body.find(declared.name) != std::string::npos) decoder.symbol(declared.name, SHARED_BASE + declared.place(k->shared_bytes));
    k->dynamic_shared = !shared.dynamic.empty();
    for (const Declaration& declared : shared.dynamic) decoder.symbol(declared.name, SHARED_BASE + dynamic_shared_offset(*k));
    for (const std::string& s : all) {
        if (s.back() == ':') {
            decoder.label(s.substr(0, s.size() - 1));
        } else if (starts(s, ".loc ")) {
            decoder.line = atoi(s.c_str() + 5);
        } else if (starts(s, ".reg")) {
            const std::string names = s.substr(s.find_first_of(" \t", s.find_first_not_of(" \t", 4)));
            for (const std::string& name : split(names, ',')) decoder.declare(name);
        } else if (s[0] != '.') {
            decoder.add(s);
        }
    }
    decoder.link();
    return k;
}

}  // namespace

Module::Module(const std::string& ptx) {
    const std::string text = flattened(ptx);
    Shared shared;
    for (size_t at = 0, end; (end = text.find_first_of(";{", at)) != std::string::npos;) {
        const std::string head = text.substr(at, end - at);
        if (text[end] == ';') {
            if (head.find(".shared") != std::string::npos) shared.add(trimmed(head));
            at = end + 1;
            continue;
        }
        size_t close = end + 1;
        for (int depth = 1; depth; ++close) {
            if (close == text.size()) throw Unsupported("a body without an end: " + head);
            depth += (text[close] == '{') - (text[close] == '}');
        }
        at = close;
        if (head.find(".entry") == std::string::npos) {
            if (head.find(".func") != std::string::npos) throw Unsupported("a device function that was not inlined: " + trimmed(head));
            continue;
        }
        auto parsed = kernel(head, text.substr(end + 1, close - end - 2), shared);
        kernels[parsed->name] = std::move(parsed);
    }
}

}  // namespace ptxsim
