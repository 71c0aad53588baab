#include "unit.h"

#include <algorithm>
#include <atomic>
#include <iterator>

#include "bn_vectors.h"
#include "checks.h"
#include "dispatch.h"
#include "kernels.h"

namespace fused_preact {
namespace {

size_t element(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }
size_t wide_element(Dtype dtype) { return dtype == Dtype::float64 ? 8 : 4; }
int64_t pixels_in(const Conv& conv) { return conv.n * conv.h.in * conv.w.in; }
int64_t pixels_out(const Conv& conv) { return conv.n * conv.h.out * conv.w.out; }

// The unit's own part of a workspace; the kernels share the rest, one at a time.
struct Carver {
    char* data;
    size_t used = 0;

    void* take(size_t bytes) {
        void* p = reinterpret_cast<void*>(uintptr_t(data) + used);
        used += (bytes + 4095) / 4096 * 4096;
        return p;
    }
};

constexpr const char* NAMES[] = {"bn_stats", "bn_relu", "bn_relu_conv2d_fwd", "bn_relu_conv2d_bwd", "bn_bwd"};
enum Kernel { BN_STATS, BN_RELU, CONV_FWD, CONV_BWD, BN_BWD };
std::atomic<int64_t> launches[std::size(NAMES)];

// Every launch of a unit goes through here: counting, it only finds out how much workspace the kernels want.
struct Launcher {
    bool counting;
    Workspace workspace;
    size_t wanted = 0;
    const char* error = nullptr;

    template <class Record>
    void operator()(Kernel name, Status (*kernel)(const Record&), Record record) {
        if (error || (error = impossible(record))) return;
        record.workspace = counting ? Workspace{} : workspace;
        if (!counting) ++launches[name];
        const Status status = kernel(record);
        error = status.error;
        wanted = std::max(wanted, status.workspace);
    }
};

// Runs body(launch, carver) twice: to count, and for good.
template <class Body>
Status run(const Workspace& workspace, Body&& body) {
    // An absent tensor is null, so counting starts elsewhere.
    Carver carver{nullptr, 4096};
    Launcher count{true, {}};
    body(count, carver);
    const size_t needed = carver.used + count.wanted;
    if (count.error) return {count.error, 0};
    if (needed > workspace.bytes) return {nullptr, needed};
    char* data = static_cast<char*>(workspace.data);
    Carver real{data};
    Launcher launch{false, {data + carver.used, workspace.bytes - carver.used}};
    body(launch, real);
    return {launch.error, 0};
}

struct Pieces {
    const Unit& unit;
    size_t e, w;
    int64_t pitch;

    explicit Pieces(const Unit& u) : unit(u), e(element(u.dtype)), w(wide_element(u.dtype)), pitch(u.bns_width()) {}

    const void* bn(const void* bns, size_t layer) const {
        return unit.layers[layer].norm ? static_cast<const char*>(bns) + unit.bns_width(layer) * w : nullptr;
    }
    int64_t y_elements(size_t layer) const { return pixels_out(unit.layers[layer].conv) * unit.layers[layer].conv.k; }
    int64_t x_elements() const { return pixels_in(unit.layers[0].conv) * unit.layers[0].conv.c; }
};

// The bn vectors of layer i from the statistics of its input; frozen ones are those of the running statistics.
void finalize(const Pieces& p, size_t i, const LayerTensors& tensors, const void* stats, int64_t tiles, void* frozen, void* bns) {
    const UnitLayer& layer = p.unit.layers[i];
    const int64_t c = layer.conv.c;
    double momentum = layer.momentum;
    if (layer.batch && layer.update && tensors.num_batches_tracked) {
        ++*tensors.num_batches_tracked;
        if (momentum < 0) momentum = 1.0 / double(*tensors.num_batches_tracked);
    }
    if (!layer.batch) {
        frozen_stats(p.unit.dtype == Dtype::float64, c, tensors.running_mean, tensors.running_var, frozen);
        stats = frozen, tiles = 1;
    }
    const bool update = layer.batch && layer.update;
    launch_bn_finalize({p.unit.dtype == Dtype::float64, !layer.batch, tiles, c, stats, tensors.gamma, tensors.beta,
                        update ? tensors.running_mean : nullptr, update ? tensors.running_var : nullptr, momentum, layer.eps,
                        const_cast<void*>(p.bn(bns, i)), p.pitch});
}

// Layers first .. last, the last with the shortcut; inner[i] is where layer i writes.
void forward(const Pieces& p, Launcher& launch, const UnitFwd& args, const std::vector<void*>& inner, void* stats, void* frozen) {
    const Unit& unit = p.unit;
    const size_t depth = unit.layers.size();
    const void* h = args.x;
    for (size_t i = 0; i < depth; ++i) {
        const UnitLayer& layer = unit.layers[i];
        const bool last = i + 1 == depth;
        if (layer.norm && !args.again) {
            const void* own = i ? stats : args.stats;
            const int64_t tiles = i ? 1 : args.stats ? unit.x_tiles : 1;
            if (!own && layer.batch) {
                own = stats;
                launch(BN_STATS, kernels().bn_stats, Elementwise{unit.dtype, args.threads, pixels_in(layer.conv), layer.conv.c, 1, false, h, nullptr, 0,
                                                       nullptr, nullptr, nullptr, nullptr, stats, {}});
            }
            if (!launch.counting) finalize(p, i, args.layers[i], own, tiles, frozen, args.bns);
        }
        // Unless it is x itself, the shortcut waits in y for the last convolution to be added.
        if (i == 0 && unit.projected)
            launch(CONV_FWD, kernels().bn_relu_conv2d_fwd,
                   BnReluConv2dFwd{unit.dtype, args.threads, unit.projection, layer.relu, args.x, unit.shared ? p.bn(args.bns, 0) : nullptr,
                                   p.pitch, args.projection, nullptr, nullptr, args.y, nullptr, 0, {}});
        else if (i == 0 && unit.shared && !launch.counting)
            launch(BN_RELU, kernels().bn_relu, Elementwise{unit.dtype, args.threads, pixels_in(layer.conv), layer.conv.c, 0, layer.relu, args.x,
                                                  p.bn(args.bns, 0), p.pitch, nullptr, nullptr, nullptr, args.y, nullptr, {}});
        const void* residual = unit.projected || unit.shared ? args.y : args.x;
        const bool next_stats = !last && unit.layers[i + 1].norm && unit.layers[i + 1].batch && !args.again;
        launch(CONV_FWD, kernels().bn_relu_conv2d_fwd,
               BnReluConv2dFwd{unit.dtype, args.threads, layer.conv, layer.relu, h, p.bn(args.bns, i), p.pitch, args.layers[i].weight, nullptr,
                               last ? residual : nullptr, last ? args.y : inner[i], last ? args.y_stats : next_stats ? stats : nullptr,
                               last ? unit.y_tiles : 1, {}});
        h = last ? args.y : inner[i];
    }
}

int64_t widest(const Unit& unit) {
    int64_t channels = 0;
    for (const UnitLayer& layer : unit.layers) channels = std::max({channels, layer.conv.c, layer.conv.k});
    return channels;
}

}  // namespace

int64_t Unit::bns_width(size_t layer) const {
    int64_t width = 0;
    for (size_t i = 0; i < layer; ++i) width += layers[i].norm ? layers[i].conv.c : 0;
    return width;
}

std::vector<std::pair<const char*, int64_t>> unit_launches() {
    std::vector<std::pair<const char*, int64_t>> counted;
    for (size_t i = 0; i < std::size(NAMES); ++i) counted.push_back({NAMES[i], launches[i]});
    return counted;
}

Status launch_unit_fwd(const Unit& unit, const UnitFwd& args) {
    if (const char* error = impossible(unit, args)) return {error, 0};
    const Pieces p(unit);
    return run(args.workspace, [&](Launcher& launch, Carver& carver) {
        void *stats = carver.take(3 * widest(unit) * p.w), *frozen = carver.take(3 * widest(unit) * p.w);
        std::vector<void*> inner = args.inner;
        for (size_t i = 0; i + 1 < unit.layers.size(); ++i)
            if (!inner[i]) inner[i] = carver.take(p.y_elements(i) * p.e);
        forward(p, launch, args, inner, stats, frozen);
    });
}

Status launch_unit_bwd(const Unit& unit, const UnitBwd& args) {
    if (const char* error = impossible(unit, args)) return {error, 0};
    const Pieces p(unit);
    const size_t depth = unit.layers.size();
    return run(args.workspace, [&](Launcher& launch, Carver& carver) {
        const int64_t c = widest(unit);
        void *sums = carver.take(2 * c * p.w), *coeffs[2] = {carver.take(4 * c * p.w), carver.take(4 * c * p.w)};
        void* unused = carver.take(c * p.w);
        std::vector<const void*> inputs{args.x};
        inputs.insert(inputs.end(), args.inner.begin(), args.inner.end());
        if (inputs.size() < depth) {
            std::vector<void*> again;
            UnitFwd forwards{args.threads, true, args.x, nullptr, args.projection, {}, {}, const_cast<void*>(args.bns), nullptr, nullptr, {}};
            for (size_t i = 0; i + 1 < depth; ++i) {
                const UnitLayer& layer = unit.layers[i];
                again.push_back(carver.take(p.y_elements(i) * p.e));
                launch(CONV_FWD, kernels().bn_relu_conv2d_fwd,
                       BnReluConv2dFwd{unit.dtype, args.threads, layer.conv, layer.relu, inputs[i], p.bn(args.bns, i), p.pitch, args.weights[i],
                                       nullptr, nullptr, again[i], nullptr, 1, {}});
                inputs.push_back(again[i]);
            }
        }
        int64_t largest = p.x_elements();
        for (size_t i = 0; i + 1 < depth; ++i) largest = std::max(largest, p.y_elements(i));
        void* g[2] = {carver.take(largest * p.e), depth > 2 ? carver.take(largest * p.e) : nullptr};

        // The shortcut's gradient goes to x, or to the first activation if that is what the shortcut starts from.
        const bool into_dz = unit.shared || !unit.layers[0].norm, first_affine = args.dgamma[0];
        const bool wanted = args.dx || (into_dz && first_affine);
        const void* shortcut = wanted ? args.dy : nullptr;
        if (unit.projected && (wanted || args.dprojection)) {
            void* dz = wanted ? carver.take(p.x_elements() * p.e) : nullptr;
            launch(CONV_BWD, kernels().bn_relu_conv2d_bwd,
                   BnReluConv2dBwd{unit.dtype, args.threads, unit.projection, unit.layers[0].relu, wanted ? Emit::dz : Emit::none,
                                   {args.dy, nullptr, nullptr, nullptr, nullptr}, args.x, unit.shared ? p.bn(args.bns, 0) : nullptr, p.pitch,
                                   args.projection, nullptr, nullptr, nullptr, dz, nullptr, 1, args.dprojection, nullptr, {}});
            shortcut = dz;
        }

        Gradient pending{args.dy, nullptr, nullptr, nullptr, nullptr};
        for (size_t i = depth; i-- > 0;) {
            const UnitLayer& layer = unit.layers[i];
            bool below = args.dx;
            for (size_t j = 0; j < i; ++j) below = below || args.dgamma[j] || args.dweight[j];
            const bool affine = args.dgamma[i];
            if (!(below || affine || args.dweight[i])) break;
            const void *bn = p.bn(args.bns, i), *add_dz = i == 0 && into_dz ? shortcut : nullptr;
            const bool ends = i == 0 && args.dx;
            const bool raw = ends && !layer.norm;
            const Emit emit = raw ? Emit::dz : below ? Emit::g : affine ? Emit::sums : Emit::none;
            const bool written = emit == Emit::g || emit == Emit::dz;
            void* out = written ? (ends ? args.dx : g[i % 2 && g[1] ? 1 : 0]) : nullptr;
            const bool summed = emit == Emit::g || emit == Emit::sums;
            launch(CONV_BWD, kernels().bn_relu_conv2d_bwd,
                   BnReluConv2dBwd{unit.dtype, args.threads, layer.conv, layer.relu, emit, pending, inputs[i], bn, p.pitch, args.weights[i],
                                   add_dz, nullptr, nullptr, out, summed ? sums : nullptr, 1, args.dweight[i], nullptr, {}});
            if (!summed) continue;
            void* own = coeffs[i % 2];
            if (!launch.counting)
                launch_bn_coeffs({unit.dtype == Dtype::float64, 1, layer.conv.c, sums, bn, p.pitch, own, affine ? args.dgamma[i] : unused,
                                  affine ? args.dbeta[i] : unused});
            pending = {out, inputs[i], own, nullptr, nullptr};
            if (ends && !launch.counting)  // it needs no workspace, and would run
                launch(BN_BWD, kernels().bn_bwd, Elementwise{unit.dtype, args.threads, pixels_in(layer.conv), layer.conv.c, 1, false, args.x, nullptr, 0, out,
                                                     own, into_dz ? nullptr : shortcut, args.dx, nullptr, {}});
        }
    });
}

}  // namespace fused_preact
