// ldmatrix and mma.sync, by the fragment layouts of the PTX manual.
#include "decode.h"
#include "machine.h"
#include "numbers.h"

namespace ptxsim {
namespace {

// `vector` matrices of 8 rows of 16 bytes; lanes 8i to 8i + 7 give the rows of matrix i. flag: transposed.
void load_matrix(Machine& m, Warp& w, const Instruction& in, uint32_t) {
    uint64_t addresses[LANES];
    for (int l = 0; l < LANES; ++l) addresses[l] = w.reg(in.from[0])[l];
    m.count_shared(addresses, in.offset, in.vector == 4 ? ~0u : (1u << 8 * in.vector) - 1, 16);
    std::vector<uint32_t> fragments(size_t(in.vector) * LANES);
    for (int i = 0; i < in.vector; ++i) {
        uint16_t rows[8][8];
        for (int r = 0; r < 8; ++r) memcpy(rows[r], m.memory(Space::shared, addresses[8 * i + r] + in.offset, 16, Machine::Kind::read, w, 8 * i + r, in), 16);
        for (int l = 0; l < LANES; ++l) {
            const int row = l / 4, column = 2 * (l % 4);
            const uint32_t low = in.flag ? rows[column][row] : rows[row][column], high = in.flag ? rows[column + 1][row] : rows[row][column + 1];
            fragments[size_t(i) * LANES + l] = low | high << 16;
        }
    }
    for (int i = 0; i < in.vector; ++i)
        for (int l = 0; l < LANES; ++l) put<uint32_t>(w.reg(in.to[i]), l, fragments[size_t(i) * LANES + l]);
}

enum Element { BFLOAT, HALF, TF32 };

float element(int type, uint32_t bits, int part) {
    return type == TF32 ? truncated_tf32(bits) : type == HALF ? from_half(uint16_t(bits >> 16 * part)) : from_bfloat(uint16_t(bits >> 16 * part));
}

// d = a*b + c, a 16 x k by rows, b k x 8 by columns, c and d 16 x 8 in float32. Sums are exact to double, then rounded once; hardware rounds
// in an order of its own. variant: the element; second_variant: registers of a.
void multiply(Machine& m, Warp& w, const Instruction& in, uint32_t) {
    constexpr int ROWS = 16, COLUMNS = 8, MOST = 16;
    const int k = int(in.offset), each = in.variant == TF32 ? 1 : 2, of_a = in.second_variant, of_b = of_a / 2;
    float a[ROWS][MOST], b[COLUMNS][MOST];
    ++m.counters.mma;
    for (int l = 0; l < LANES; ++l)
        for (int part = 0; part < each; ++part) {
            const int group = l / 4, column = l % 4 * each + part;
            for (int i = 0; i < of_a; ++i) a[group + 8 * (i & 1)][column + 4 * each * (i >> 1)] = element(in.variant, get<uint32_t>(w.reg(in.from[i]), l), part);
            for (int i = 0; i < of_b; ++i) b[group][column + 4 * each * i] = element(in.variant, get<uint32_t>(w.reg(in.from[of_a + i]), l), part);
        }
    float results[4][LANES];
    for (int l = 0; l < LANES; ++l)
        for (int i = 0; i < 4; ++i) {
            double sum = get<float>(w.reg(in.from[of_a + of_b + i]), l);
            for (int j = 0; j < k; ++j) sum += double(a[l / 4 + 8 * (i >> 1)][j]) * b[2 * (l % 4) + (i & 1)][j];
            results[i][l] = float(sum);
        }
    for (int i = 0; i < 4; ++i)
        for (int l = 0; l < LANES; ++l) put<float>(w.reg(in.to[i]), l, results[i][l]);
}

}  // namespace

bool decode_matrix(Decoder& decoder, const Statement& s, Instruction& in) {
    in.collective = true;
    if (s.root() == "ldmatrix" && s.has("b16") && s.has("m8n8")) {
        in.run = load_matrix;
        in.vector = s.has("x4") ? 4 : s.has("x2") ? 2 : 1;
        in.flag = s.has("trans");
        decoder.to(in, s.operands[0]);
        decoder.address(in, s.operands[1], in.offset);
        return true;
    }
    // mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
    if (s.root() != "mma" || s.op.size() != 10 || s.op[4] != "row" || s.op[5] != "col" || s.op[6] != "f32" || s.op[9] != "f32") return false;
    static const std::map<std::string, Element> ELEMENTS{{"bf16", BFLOAT}, {"f16", HALF}, {"tf32", TF32}};
    // Registers of a.
    static const std::map<std::pair<std::string, int>, int> SHAPES{
        {{"m16n8k16", BFLOAT}, 4}, {{"m16n8k8", BFLOAT}, 2}, {{"m16n8k16", HALF}, 4}, {{"m16n8k8", HALF}, 2}, {{"m16n8k8", TF32}, 4}, {{"m16n8k4", TF32}, 2}};
    const auto type = ELEMENTS.find(s.op[7]);
    if (type == ELEMENTS.end() || s.op[8] != s.op[7]) return false;
    const auto shape = SHAPES.find({s.op[3], type->second});
    if (shape == SHAPES.end()) return false;
    in.run = multiply;
    in.variant = type->second;
    in.second_variant = shape->second;
    in.offset = atoi(s.op[3].c_str() + 6);
    decoder.to(in, s.operands[0]);
    decoder.from(in, s, 1, {'u', 4});
    return int(in.from.size()) == in.second_variant * 3 / 2 + 4;
}

}  // namespace ptxsim
