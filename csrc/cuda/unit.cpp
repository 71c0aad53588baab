#include "unit.h"

#include <algorithm>

#include "kernels.h"

namespace fused_preact::cuda {
namespace {

constexpr size_t LINE = 128;
constexpr int PROJECTION = -1, ALL = -2;

size_t itemsize(const Unit& unit) { return unit.dtype == Dtype::float32 ? 4 : 2; }
size_t input_bytes(const Unit& unit, const Conv& a) { return a.inputs() * a.c * itemsize(unit); }
size_t output_bytes(const Unit& unit, const Conv& a) { return a.outputs() * a.k * itemsize(unit); }
size_t part_bytes(const TiledConv& a) { return sizeof(float) * std::max(a.both.wgrad.parts, a.alone.wgrad.parts) * a.conv.k * a.conv.taps() * a.conv.c; }

// Those for both gradients are not for dx, as in fused_preact/backends/cuda/tiles.py.
BwdTiles tiles_of(const TiledConv& a, Emit emit, bool wgrad) {
    const bool dgrad = emit != Emit::none, dx = emit == Emit::dx || emit == Emit::dx_sums;
    if (dgrad && wgrad && !dx) return a.both;
    return {dgrad ? a.alone.dgrad : ConvTile{}, wgrad ? a.alone.wgrad : WgradTile{}};
}

template <class Of>
size_t most(const Unit& unit, Of&& of) {
    size_t bytes = 0;
    for (const UnitLayer& layer : unit.layers) bytes = std::max<size_t>(bytes, of(layer));
    return bytes;
}

// Cuts pieces off a workspace.
struct Carver {
    char* memory;
    std::vector<Piece> pieces;

    void* take(const char* name, size_t bytes) {
        const size_t offset = pieces.empty() ? 0 : (pieces.back().offset + pieces.back().bytes + LINE - 1) / LINE * LINE;
        pieces.push_back({name, offset, bytes});
        return memory + offset;
    }
    float* floats(const char* name, size_t count) { return static_cast<float*>(take(name, sizeof(float) * count)); }

    std::vector<void*> inner(const Unit& unit) {
        static constexpr const char* NAMES[] = {"inner0", "inner1"};
        std::vector<void*> all;
        for (size_t i = 0; i + 1 < unit.layers.size(); ++i) all.push_back(take(NAMES[i], output_bytes(unit, unit.layers[i].tiled.conv)));
        return all;
    }
};

// Launches follow one another on a stream, so that a piece serves one layer after the other.
struct FwdWorkspace {
    Carver carver;
    float* stats;
    std::vector<void*> inner;

    FwdWorkspace(const Unit& unit, void* memory, bool keep) : carver{static_cast<char*>(memory), {}} {
        stats = carver.floats("stats", most(unit, [](const UnitLayer& a) { return size_t(3) * a.tiles * a.tiled.conv.c; }));
        if (!keep) inner = carver.inner(unit);
    }
};

// g: a layer reads that of the layer after it and writes its own.
struct BwdWorkspace {
    Carver carver;
    float *sums, *coeffs[2], *unwanted;
    std::vector<float*> parts;  // of each layer, and last of the projection: they are added up at the end
    void *g[2], *dz = nullptr;
    std::vector<void*> inner;

    BwdWorkspace(const Unit& unit, void* memory, bool kept) : carver{static_cast<char*>(memory), {}} {
        const size_t widest = most(unit, [](const UnitLayer& a) { return a.tiled.conv.c; });
        sums = carver.floats("sums", most(unit, [](const UnitLayer& a) { return size_t(2) * a.tiles * a.tiled.conv.c; }));
        coeffs[0] = carver.floats("coeffs0", 4 * widest), coeffs[1] = carver.floats("coeffs1", 4 * widest);
        unwanted = carver.floats("unwanted", widest);
        static constexpr const char* PARTS[] = {"parts0", "parts1", "parts2", "parts3"};
        auto take_parts = [&](const TiledConv& conv) { parts.push_back(static_cast<float*>(carver.take(PARTS[parts.size()], part_bytes(conv)))); };
        for (const UnitLayer& layer : unit.layers) take_parts(layer.tiled);
        if (unit.projected) take_parts(unit.projection);
        size_t bytes[2] = {};
        for (size_t i = 1; i < unit.layers.size(); ++i) bytes[i % 2] = std::max(bytes[i % 2], input_bytes(unit, unit.layers[i].tiled.conv));
        g[0] = carver.take("g0", bytes[0]), g[1] = carver.take("g1", bytes[1]);
        if (unit.projected) dz = carver.take("dz", input_bytes(unit, unit.projection.conv));
        if (!kept) inner = carver.inner(unit);
    }
};

// dy, deferred if there are coeffs: a*dy + b*(x - mean) + c.
struct Dy {
    const void *dy, *x = nullptr;
    const float* coeffs = nullptr;
};

// The launches of a unit; the first that fails is the last.
struct Launches {
    const Unit& unit;
    const Target target;
    const float* const bns;
    const int64_t pitch = unit.bns_width();
    Failure failure{};
    PartSums pending{target, unit.dtype, 0, {}};

    template <class Record>
    void operator()(int layer, const char* name, Status (*kernel)(const Record&), const Record& record) {
        if (!failure.text.empty()) return;
        failure = attempt(name, kernel, record);
        if (failure.text.empty()) return;
        const std::string whose = layer == ALL ? "all layers" : layer == PROJECTION ? "the projection" : "layer " + std::to_string(layer + 1);
        failure.text = whose + " of a unit: " + failure.text;
    }

    const float* bn(size_t layer) const { return unit.layers[layer].norm ? bns + unit.bns_width(layer) : nullptr; }

    Elementwise of_x(const void* x, const Grid& grid) const {
        const UnitLayer& first = unit.layers[0];
        Elementwise args{target, grid, unit.dtype, first.tiled.conv.inputs(), first.tiled.conv.c, first.relu};
        args.x = x;
        return args;
    }

    void bn_stats(const void* x, float* stats) {
        Elementwise args = of_x(x, unit.stats);
        args.sums = stats, args.tiles = unit.layers[0].tiles;
        (*this)(0, "bn_stats", launch_bn_stats, args);
    }

    // Frozen statistics are the running ones.
    void bn_finalize(size_t i, const LayerTensors& own, const float* stats, int tiles, float* bns) {
        const UnitLayer& layer = unit.layers[i];
        const bool moves = layer.batch && layer.update;
        BnFinalize args{target, layer.batch ? tiles : 0, layer.tiled.conv.c, layer.batch ? stats : nullptr, own.gamma, own.beta};
        if (moves || !layer.batch) args.running_mean = own.running_mean, args.running_var = own.running_var;
        if (moves) args.num_batches_tracked = own.num_batches_tracked, args.cumulative = layer.cumulative, args.momentum = layer.momentum;
        args.frozen = !layer.batch, args.eps = layer.eps, args.bn = bns + unit.bns_width(i), args.bn_pitch = pitch;
        (*this)(int(i), "bn_finalize", launch_bn_finalize, args);
    }

    void bn_relu(const void* x, void* z) {
        Elementwise args = of_x(x, unit.elements);
        args.bn = bn(0), args.bn_pitch = pitch, args.out = z;
        (*this)(0, "bn_relu", launch_bn_relu, args);
    }

    void conv_fwd(int layer, const TiledConv& own, bool relu, const void* x, const float* bn, const void* weight, const void* residual, void* y, float* stats, int tiles) {
        (*this)(layer, "bn_relu_conv2d_fwd", launch_bn_relu_conv2d_fwd,
                BnReluConv2dFwd{target, own.fwd, unit.dtype, own.conv, relu, x, bn, pitch, weight, nullptr, residual, y, stats, tiles});
    }

    void inner_fwd(size_t i, const void* x, const void* weight, void* y, float* stats) {
        const UnitLayer& layer = unit.layers[i];
        conv_fwd(int(i), layer.tiled, layer.relu, x, bn(i), weight, nullptr, y, stats, unit.layers[i + 1].tiles);
    }

    // What all backwards of a convolution have but their tiles; parts: of dweight, if it is wanted.
    BnReluConv2dBwd of_conv(const TiledConv& own, bool relu, Emit emit, const Dy& dy, const void* x, const float* bn, const void* weight, float* parts,
                            void* dweight) const {
        BnReluConv2dBwd args{target, {}, {}, unit.dtype, own.conv, relu, emit};
        args.dy = dy.dy, args.dy_x = dy.x, args.dy_coeffs = dy.coeffs, args.x = x, args.bn = bn, args.bn_pitch = pitch, args.weight = weight;
        args.parts = dweight ? parts : nullptr, args.dweight = dweight, args.taps_last = own.taps_last;
        return args;
    }

    // Parts of dweight wait until all layers have theirs.
    void conv_bwd(int layer, const TiledConv& own, BnReluConv2dBwd args) {
        const BwdTiles tiles = tiles_of(own, args.emit, args.dweight);
        args.dgrad = tiles.dgrad, args.wgrad = tiles.wgrad;
        (*this)(layer, "bn_relu_conv2d_bwd", launch_bn_relu_conv2d_gradients, args);
        if (args.dweight) pending.of[pending.count++] = part_sum_of(args);
    }

    void add_parts() {
        if (pending.count) (*this)(ALL, "bn_relu_conv2d_wgrad_sum", launch_bn_relu_conv2d_wgrad_sum, pending);
    }

    void bn_coeffs(size_t i, const float* sums, float* coeffs, float* dgamma, float* dbeta) {
        const UnitLayer& layer = unit.layers[i];
        (*this)(int(i), "bn_coeffs", launch_bn_coeffs,
                BnCoeffs{target, sums ? layer.tiles : 0, layer.tiled.conv.c, sums, bn(i), pitch, coeffs, dgamma, dbeta});
    }

    // In place: dx is g.
    void bn_bwd(const void* x, const float* coeffs, const void* add, void* dx) {
        Elementwise args = of_x(x, unit.elements);
        args.coeffs = coeffs, args.grad = dx, args.add = add, args.out = dx;
        (*this)(0, "bn_bwd", launch_bn_bwd, args);
    }
};

// dx, dgamma and dbeta (if they are wanted) and dweight of the first layer, at which the chain of deferred gradients ends. `args` has all but emit
// and the results; dgamma and dbeta always have memory.
void input_grad(Launches& launch, BnReluConv2dBwd args, const BwdWorkspace& own, const void* residual_grad, bool affine, float* dgamma, float* dbeta, void* dx) {
    const UnitLayer& layer = launch.unit.layers[0];
    float* const coeffs = own.coeffs[0];
    args.sums_tiles = layer.tiles;
    if (!layer.norm) {
        args.emit = Emit::dz, args.out = dx;
        launch.conv_bwd(0, layer.tiled, args);
    } else if (!layer.batch) {
        // Of no sums: the coefficients of frozen statistics need none.
        launch.bn_coeffs(0, nullptr, coeffs, own.unwanted, own.unwanted);
        args.emit = affine ? Emit::dx_sums : Emit::dx, args.out = dx, args.coeffs = coeffs, args.residual_grad = residual_grad, args.sums = affine ? own.sums : nullptr;
        launch.conv_bwd(0, layer.tiled, args);
        if (affine) launch.bn_coeffs(0, own.sums, coeffs, dgamma, dbeta);
    } else if (launch.unit.two_dgrads) {
        args.emit = Emit::sums, args.sums = own.sums;
        launch.conv_bwd(0, layer.tiled, args);
        launch.bn_coeffs(0, own.sums, coeffs, dgamma, dbeta);
        args.emit = Emit::dx, args.sums = nullptr, args.out = dx, args.coeffs = coeffs, args.residual_grad = residual_grad;
        args.parts = nullptr, args.dweight = nullptr;
        launch.conv_bwd(0, layer.tiled, args);
    } else {
        args.emit = Emit::g, args.sums = own.sums, args.out = dx;
        launch.conv_bwd(0, layer.tiled, args);
        launch.bn_coeffs(0, own.sums, coeffs, dgamma, dbeta);
        launch.bn_bwd(args.x, coeffs, residual_grad, dx);
    }
}

const char* impossible(const Unit& unit, const UnitFwd& args) {
    const size_t depth = unit.layers.size();
    if (args.layers.size() != depth || (!args.inner.empty() && args.inner.size() + 1 != depth)) return "the unit's layers have other tensors";
    return args.x && args.bns && args.y && args.workspace && (args.projection || !unit.projected) ? nullptr : "a tensor of the unit is missing";
}

const char* impossible(const Unit& unit, const UnitBwd& args) {
    const size_t depth = unit.layers.size();
    const bool each = args.weights.size() == depth && args.dgamma.size() == depth && args.dbeta.size() == depth && args.dweight.size() == depth;
    if (!each || (!args.inner.empty() && args.inner.size() + 1 != depth)) return "the unit's layers have other tensors";
    return args.dy && args.x && args.bns && args.workspace && (args.projection || !unit.projected) ? nullptr : "a tensor of the unit is missing";
}

bool same_images(const Conv& a, const Conv& b) { return a.n == b.n && a.y.in == b.y.in && a.x.in == b.x.in && a.c == b.c; }
bool follows(const Conv& a, const Conv& next) { return next.n == a.n && next.y.in == a.y.out && next.x.in == a.x.out && next.c == a.k; }

}  // namespace

int64_t Unit::bns_width(size_t layer) const {
    int64_t width = 0;
    for (size_t i = 0; i < layer; ++i) width += layers[i].norm ? layers[i].tiled.conv.c : 0;
    return width;
}

const char* impossible(const Unit& unit) {
    if (unit.layers.empty() || unit.layers.size() > 3) return "expected a unit of one to three layers";
    for (size_t i = 1; i < unit.layers.size(); ++i)
        if (!follows(unit.layers[i - 1].tiled.conv, unit.layers[i].tiled.conv)) return "expected layers that follow one another";
    const Conv &first = unit.layers.front().tiled.conv, &last = unit.layers.back().tiled.conv, &projection = unit.projection.conv;
    const bool as_y = unit.projected ? projection.y.out == last.y.out && projection.x.out == last.x.out && projection.k == last.k && same_images(projection, first)
                                     : follows(last, first);
    if (!as_y) return "expected a shortcut whose result has the shape of y";
    if (std::any_of(unit.layers.begin() + 1, unit.layers.end(), [](const UnitLayer& a) { return !a.norm; })) return "expected a norm in each layer but the first";
    return unit.shared && !unit.layers[0].norm ? "expected a first activation that the shortcut can share" : nullptr;
}

std::vector<Piece> unit_fwd_workspace(const Unit& unit, bool keep) { return FwdWorkspace(unit, nullptr, keep).carver.pieces; }
std::vector<Piece> unit_bwd_workspace(const Unit& unit, bool kept) { return BwdWorkspace(unit, nullptr, kept).carver.pieces; }

Failure launch_unit_fwd(const Unit& unit, const UnitFwd& args) {
    if (const char* error = impossible(unit, args)) return {error, true};
    const size_t depth = unit.layers.size();
    const FwdWorkspace own(unit, args.workspace, !args.inner.empty());
    const std::vector<void*>& inner = args.inner.empty() ? own.inner : args.inner;
    Launches launch{unit, args.target, args.bns};
    const void* h = args.x;
    for (size_t i = 0; i < depth; ++i) {
        const UnitLayer& layer = unit.layers[i];
        const void* const weight = args.layers[i].weight;
        if (layer.norm && !args.again) {
            const bool given = i == 0 && args.stats;
            if (i == 0 && layer.batch && !given) launch.bn_stats(h, own.stats);
            launch.bn_finalize(i, args.layers[i], given ? args.stats : own.stats, given ? args.stats_tiles : layer.tiles, args.bns);
        }
        // Unless it is x itself, the shortcut waits in y for the last convolution to be added.
        if (i == 0 && unit.projected)
            launch.conv_fwd(PROJECTION, unit.projection, layer.relu, args.x, unit.shared ? launch.bn(0) : nullptr, args.projection, nullptr, args.y, nullptr, 0);
        else if (i == 0 && unit.shared)
            launch.bn_relu(args.x, args.y);
        if (i + 1 == depth) {
            const void* const shortcut = unit.projected || unit.shared ? args.y : args.x;
            launch.conv_fwd(int(i), layer.tiled, layer.relu, h, launch.bn(i), weight, shortcut, args.y, args.y_stats, unit.y_tiles);
        } else {
            const bool wanted = unit.layers[i + 1].norm && unit.layers[i + 1].batch && !args.again;
            launch.inner_fwd(i, h, weight, inner[i], wanted ? own.stats : nullptr);
            h = inner[i];
        }
    }
    return launch.failure;
}

Failure launch_unit_bwd(const Unit& unit, const UnitBwd& args) {
    if (const char* error = impossible(unit, args)) return {error, true};
    const size_t depth = unit.layers.size();
    const BwdWorkspace own(unit, args.workspace, !args.inner.empty());
    Launches launch{unit, args.target, args.bns};
    std::vector<const void*> inputs{args.x};
    for (size_t i = 0; i + 1 < depth; ++i) {
        if (args.inner.empty()) launch.inner_fwd(i, inputs[i], args.weights[i], own.inner[i], nullptr);
        inputs.push_back(args.inner.empty() ? own.inner[i] : args.inner[i]);
    }

    // The shortcut's gradient goes to x, or to the first activation if that is what the shortcut starts from.
    const bool into_dz = unit.shared || !unit.layers[0].norm, wanted = args.dx || (into_dz && args.dgamma[0]);
    const void* shortcut = wanted ? args.dy : nullptr;
    if (unit.projected && (wanted || args.dprojection)) {
        BnReluConv2dBwd own_args = launch.of_conv(unit.projection, unit.layers[0].relu, wanted ? Emit::dz : Emit::none, {args.dy}, args.x,
                                                  unit.shared ? launch.bn(0) : nullptr, args.projection, own.parts.back(), args.dprojection);
        if (wanted) shortcut = own_args.out = own.dz;
        launch.conv_bwd(PROJECTION, unit.projection, own_args);
    }

    Dy pending{args.dy};
    for (size_t i = depth; i-- > 0;) {
        const UnitLayer& layer = unit.layers[i];
        bool below = args.dx;
        for (size_t j = 0; j < i; ++j) below = below || args.dgamma[j] || args.dweight[j];
        const bool affine = args.dgamma[i], ends = i == 0 && args.dx;
        if (!(below || affine || args.dweight[i])) break;
        const Emit emit = below ? Emit::g : affine ? Emit::sums : Emit::none;
        BnReluConv2dBwd conv = launch.of_conv(layer.tiled, layer.relu, emit, pending, inputs[i], launch.bn(i), args.weights[i], own.parts[i], args.dweight[i]);
        if (i == 0 && into_dz && emit != Emit::none) conv.add_dz = shortcut;
        float *const dgamma = affine ? args.dgamma[i] : own.unwanted, *const dbeta = affine ? args.dbeta[i] : own.unwanted;
        if (ends) {
            input_grad(launch, conv, own, into_dz ? nullptr : shortcut, affine, dgamma, dbeta, args.dx);
            break;
        }
        if (emit != Emit::none) conv.sums = own.sums, conv.sums_tiles = layer.tiles;
        if (emit == Emit::g) conv.out = own.g[i % 2];
        launch.conv_bwd(int(i), layer.tiled, conv);
        if (emit != Emit::none) launch.bn_coeffs(i, own.sums, own.coeffs[i % 2], dgamma, dbeta);
        pending = {conv.out, inputs[i], own.coeffs[i % 2]};
    }
    launch.add_parts();
    return launch.failure;
}

}  // namespace fused_preact::cuda
