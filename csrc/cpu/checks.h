// Records that no kernel could run: a sentence, or null. Python checks its arguments first, so these tell of mistakes in Python.
#pragma once
#include "records.h"
#include "unit.h"

namespace fused_preact {

inline const char* impossible(const Axis& a) {
    if (a.in < 0 || a.kernel < 1 || a.stride < 1 || a.padding < 0 || a.dilation < 1) return "expected kernel, stride and dilation of at least 1";
    if (a.out < 0 || (a.out > 0 && a.out != (a.in + 2 * a.padding - a.dilation * (a.kernel - 1) - 1) / a.stride + 1))
        return "the output's size is not that of the convolution";
    return nullptr;
}

inline const char* impossible(const Conv& conv) {
    if (conv.n < 1 || conv.c < 1 || conv.k < 1 || conv.h.out < 1 || conv.w.out < 1) return "expected at least one image, channel and pixel";
    if (conv.groups < 1 || conv.c % conv.groups || conv.k % conv.groups) return "groups must divide the channels of input and output";
    const char* error = impossible(conv.h);
    return error ? error : impossible(conv.w);
}

inline const char* impossible(Dtype dtype, int threads) {
    if (dtype < Dtype::float32 || dtype > Dtype::bfloat16) return "unknown dtype";
    return threads < 1 ? "expected at least one thread" : nullptr;
}

inline const char* impossible(const BnReluConv2dFwd& args) {
    if (const char* error = impossible(args.dtype, args.threads)) return error;
    if (!args.x || !args.weight || !args.y) return "x, weight and y must be given";
    if (args.stats && args.tiles < 1) return "statistics need a tile";
    return impossible(args.conv);
}

inline const char* impossible(const BnReluConv2dBwd& args) {
    if (const char* error = impossible(args.dtype, args.threads)) return error;
    if (!args.x || !args.weight || !args.dy.dy) return "dy, x and weight must be given";
    if (!args.dy.x != !args.dy.coeffs) return "a deferred dy needs x and coeffs";
    const bool dx = args.emit == Emit::dx || args.emit == Emit::dx_sums, sums = args.emit == Emit::g || args.emit == Emit::sums;
    if (args.emit < Emit::none || args.emit > Emit::dx_sums) return "unknown emit";
    if (dx && !args.coeffs) return "dx needs coeffs";
    if ((dx || args.emit == Emit::dz || args.emit == Emit::g) != bool(args.out)) return "out must be given exactly if emit writes it";
    if ((sums || args.emit == Emit::dx_sums) != bool(args.sums) || (args.sums && args.tiles < 1)) return "sums must be given exactly if emit has them";
    return impossible(args.conv);
}

inline const char* impossible(const Elementwise& args) {
    if (!args.x || !(args.out || args.stats)) return "x and the result must be given";
    if (!args.stats && !args.bn && !args.coeffs) return "bn or coeffs must be given";
    if ((args.coeffs && !args.grad) || (args.stats && args.out && (!args.bn || !args.grad))) return "the gradient must be given";
    if (args.grad && args.bn && !(args.out && args.stats)) return "g and its sums must be given";
    if (args.pixels < 1 || args.channels < 1) return "expected at least one pixel and channel";
    if (args.stats && args.tiles < 1) return "statistics need a tile";
    return impossible(args.dtype, args.threads);
}

inline const char* impossible(const Unit& unit) {
    if (unit.layers.empty()) return "expected at least one layer";
    const Conv &first = unit.layers.front().conv, &last = unit.layers.back().conv;
    for (size_t i = 0; i < unit.layers.size(); ++i) {
        const Conv& conv = unit.layers[i].conv;
        if (const char* error = impossible(conv)) return error;
        if (i == 0) continue;
        const Conv& before = unit.layers[i - 1].conv;
        if (conv.n != before.n || conv.c != before.k || conv.h.in != before.h.out || conv.w.in != before.w.out) return "a layer does not fit the one before";
    }
    const Conv& p = unit.projection;
    if (const char* error = unit.projected ? impossible(p) : nullptr) return error;
    const bool fits = unit.projected ? p.n == first.n && p.c == first.c && p.h.in == first.h.in && p.w.in == first.w.in && p.k == last.k &&
                                           p.h.out == last.h.out && p.w.out == last.w.out
                                     : first.c == last.k && first.h.in == last.h.out && first.w.in == last.w.out;
    return fits ? nullptr : "the shortcut does not fit the last layer";
}

inline const char* impossible(const Unit& unit, const UnitFwd& args) {
    if (const char* error = impossible(unit)) return error;
    if (args.threads < 1) return "expected at least one thread";
    if (!args.x || !args.y || (!args.bns && unit.bns_width()) || (unit.projected && !args.projection)) return "x, y, bns and the projection must be given";
    for (size_t i = 0; i < unit.layers.size(); ++i) {
        const LayerTensors& t = args.layers[i];
        const UnitLayer& layer = unit.layers[i];
        const bool normalises = layer.norm && !args.again, frozen = normalises && !layer.batch;
        if (!t.weight || (frozen && !t.running_mean) || !t.running_mean != !t.running_var) return "a layer's weight or running statistics are missing";
        if (normalises && layer.batch && layer.update && layer.momentum < 0 && t.running_mean && !t.num_batches_tracked)
            return "a cumulative average needs num_batches_tracked";
    }
    return nullptr;
}

inline const char* impossible(const Unit& unit, const UnitBwd& args) {
    if (const char* error = impossible(unit)) return error;
    if (args.threads < 1) return "expected at least one thread";
    if (!args.dy || !args.x || (!args.bns && unit.bns_width()) || (unit.projected && !args.projection)) return "dy, x, bns and the projection must be given";
    for (size_t i = 0; i < unit.layers.size(); ++i) {
        if (!args.weights[i] || (i < args.inner.size() && !args.inner[i])) return "a layer's weight or input is missing";
        if (!args.dgamma[i] != !args.dbeta[i]) return "dgamma and dbeta come together";
    }
    return nullptr;
}

}  // namespace fused_preact
