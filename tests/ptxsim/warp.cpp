// What the lanes of a warp do together: shuffles, votes, reductions, __syncwarp.
#include <algorithm>

#include "decode.h"
#include "machine.h"

namespace ptxsim {
namespace {

enum Shuffle { UP, DOWN, BUTTERFLY, INDEX };

// c: the segment's mask << 8 | the last lane.
void shuffle(Machine& m, Warp& w, const Instruction& in, uint32_t lanes) {
    uint64_t values[LANES];
    memcpy(values, w.reg(in.from[0]), sizeof values);
    each(lanes, [&](int l) {
        const int b = int(get<uint32_t>(w.reg(in.from[1]), l) & 31), c = int(get<uint32_t>(w.reg(in.from[2]), l));
        const int segment = c >> 8 & 31, clamp = c & 31, first = l & segment, last = first | (clamp & ~segment);
        const int source = in.variant == UP ? l - b : in.variant == DOWN ? l + b : in.variant == BUTTERFLY ? l ^ b : first | (b & ~segment);
        const bool inside = in.variant == UP ? source >= last : source <= last;
        const int from = inside ? source : l;
        if (!(lanes >> from & 1)) m.complain("shuffle", in, "shfl of " + m.name_of(w, l) + " reads lane " + std::to_string(from) + ", which does not take part");
        put<uint32_t>(w.reg(in.to[0]), l, uint32_t(values[from]));
        if (in.to.size() > 1) put<uint8_t>(w.reg(in.to[1]), l, inside);
    });
}

enum Vote { BALLOT, ANY, ALL, UNIFORM };

void vote(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    uint32_t yes = 0;
    each(lanes, [&](int l) { yes |= uint32_t((get<uint8_t>(w.reg(in.from[0]), l) != 0) != in.flag) << l; });
    each(lanes, [&](int l) {
        if (in.variant == BALLOT)
            put<uint32_t>(w.reg(in.to[0]), l, yes);
        else
            put<uint8_t>(w.reg(in.to[0]), l, in.variant == ANY ? yes != 0 : in.variant == ALL ? yes == lanes : yes == lanes || yes == 0);
    });
}

enum Reduction { ADD, MIN, MAX, AND, OR, XOR };

void reduce(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    uint32_t result = get<uint32_t>(w.reg(in.from[0]), __builtin_ctz(lanes));
    each(lanes & (lanes - 1), [&](int l) {
        const uint32_t value = get<uint32_t>(w.reg(in.from[0]), l);
        const bool less = in.is_signed ? int32_t(value) < int32_t(result) : value < result;
        switch (in.variant) {
            case ADD:
                result += value;
                break;
            case MIN:
                result = less ? value : result;
                break;
            case MAX:
                result = less ? result : value;
                break;
            case AND:
                result &= value;
                break;
            case OR:
                result |= value;
                break;
            default:
                result ^= value;
        }
    });
    each(lanes, [&](int l) { put<uint32_t>(w.reg(in.to[0]), l, result); });
}

void warp_barrier(Machine&, Warp& w, const Instruction&, uint32_t) { ++w.barriers; }

void active_mask(Machine&, Warp& w, const Instruction& in, uint32_t lanes) {
    each(lanes, [&](int l) { put<uint32_t>(w.reg(in.to[0]), l, lanes); });
}

template <class Value>
bool choose(const Statement& s, const std::map<std::string, Value>& values, int& chosen) {
    for (const std::string& part : s.op)
        if (const auto found = values.find(part); found != values.end()) {
            chosen = found->second;
            return true;
        }
    return false;
}

}  // namespace

bool decode_warp(Decoder& decoder, const Statement& s, Instruction& in) {
    static const std::map<std::string, Shuffle> SHUFFLES{{"up", UP}, {"down", DOWN}, {"bfly", BUTTERFLY}, {"idx", INDEX}};
    static const std::map<std::string, Vote> VOTES{{"ballot", BALLOT}, {"any", ANY}, {"all", ALL}, {"uni", UNIFORM}};
    static const std::map<std::string, Reduction> REDUCTIONS{{"add", ADD}, {"min", MIN}, {"max", MAX}, {"and", AND}, {"or", OR}, {"xor", XOR}};
    const std::string& root = s.root();
    if (root == "activemask") {
        in.run = active_mask;
        decoder.to(in, s.operands[0]);
        return true;
    }
    if ((root == "bar" || root == "barrier") && s.has("warp")) {
        in.run = warp_barrier;
        in.collective = in.masked = true;
        decoder.from(in, s, 0, {'u', 4});
        return true;
    }
    if (root != "shfl" && root != "vote" && root != "redux") return false;
    if (!s.has("sync")) return false;
    Statement plain = s;
    in.collective = in.masked = true;
    if (root == "shfl" && choose(s, SHUFFLES, in.variant)) in.run = shuffle;
    if (root == "redux" && choose(s, REDUCTIONS, in.variant) && s.type().kind != 'f') {
        in.run = reduce;
        in.is_signed = s.type().kind == 's';
    }
    if (root == "vote" && choose(s, VOTES, in.variant)) {
        in.run = vote;
        if (s.operands[1][0] == '!') {
            in.flag = true;
            plain.operands[1] = s.operands[1].substr(1);
        }
    }
    if (!in.run) return false;
    decoder.to(in, s.operands[0]);
    decoder.from(in, plain, 1, {'u', 4});
    return true;
}

}  // namespace ptxsim
