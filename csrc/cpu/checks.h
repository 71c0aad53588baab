// Records that no kernel could run: a sentence, or null. Python checks its arguments first, so these tell of mistakes in Python.
#pragma once
#include "records.h"

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
    if (args.pixels < 1 || args.channels < 1) return "expected at least one pixel and channel";
    if (args.stats && args.tiles < 1) return "statistics need a tile";
    return impossible(args.dtype, args.threads);
}

}  // namespace fused_preact
