// Which pixels the outputs of a tile read, and under which tap: reckoned by the host, an argument of kernels.
#pragma once
#include <numeric>

#include "records.h"

namespace fused_preact::cuda {

// The window of a tile: pixels of the source that lie `sample` apart. Outputs of a tile are `step` pixels of the window apart, and tap t of one is
// `taps[t]` beyond its first. A transposed convolution of stride s is s*s convolutions of stride 1, one for each phase of its outputs, with the
// taps that reach it; all read the same window.
struct Window {
    static constexpr int MOST_TAPS = 49, MOST_PHASES = 4;

    // Along one axis.
    struct Side {
        int extent;           // of the window, in its pixels
        int origin, advance;  // source coordinate of its first pixel: origin + advance * position of the tile's first output
        int sample, step;
    };
    struct Phase {
        int y, x;  // of its first output
        int first, taps;
    };
    struct Tap {
        int16_t y, x;    // in pixels of the window
        int16_t weight;  // which tap of the weight
    };
    Side y, x;
    int phases;
    Phase phase[MOST_PHASES];
    Tap taps[MOST_TAPS];
};

namespace detail {

// Taps of one axis that reach a phase: where in the window, and which.
struct AxisTaps {
    int count = 0, at[Window::MOST_TAPS], weight[Window::MOST_TAPS];
};

inline Window::Side side_of(const Axis& a, int tile) {
    const int sample = a.kernel == 1 ? a.stride : std::gcd(a.stride, a.dilation), step = a.stride / sample;
    return {(tile - 1) * step + (a.kernel - 1) * a.dilation / sample + 1, -a.padding, a.stride, sample, step};
}

inline AxisTaps taps_of(const Axis& a, const Window::Side& side) {
    AxisTaps taps;
    for (int r = 0; r < a.kernel; ++r) taps.at[taps.count] = r * a.dilation / side.sample, taps.weight[taps.count++] = r;
    return taps;
}

// An input i takes from output (i + padding - r*dilation) / stride, where that is whole.
inline bool reaches(const Axis& a, int phase, int r) { return (phase + a.padding - r * a.dilation) % a.stride == 0; }
inline int reached(const Axis& a, int phase, int r) { return (phase + a.padding - r * a.dilation) / a.stride; }

inline Window::Side transposed_side_of(const Axis& a, int tile) {
    bool any = false;
    int lowest = 0, highest = 0;
    for (int phase = 0; phase < a.stride; ++phase)
        for (int r = 0; r < a.kernel; ++r) {
            if (!reaches(a, phase, r)) continue;
            const int at = reached(a, phase, r);
            lowest = any && lowest < at ? lowest : at;
            highest = any && highest > at ? highest : at;
            any = true;
        }
    return {tile + highest - lowest, lowest, 1, 1, 1};
}

inline AxisTaps transposed_taps_of(const Axis& a, const Window::Side& side, int phase) {
    AxisTaps taps;
    for (int r = 0; r < a.kernel; ++r)
        if (reaches(a, phase, r)) taps.at[taps.count] = reached(a, phase, r) - side.origin, taps.weight[taps.count++] = r;
    return taps;
}

inline void add_phase(Window& window, const Conv& conv, int y, int x, const AxisTaps& down, const AxisTaps& across) {
    const int first = window.phases ? window.phase[window.phases - 1].first + window.phase[window.phases - 1].taps : 0;
    window.phase[window.phases++] = {y, x, first, down.count * across.count};
    for (int i = 0; i < down.count; ++i)
        for (int j = 0; j < across.count; ++j)
            window.taps[first + i * across.count + j] = {int16_t(down.at[i]), int16_t(across.at[j]), int16_t(down.weight[i] * conv.x.kernel + across.weight[j])};
}

}  // namespace detail

// Whether a Window has room for the taps and phases.
inline bool has_window(const Conv& conv) { return conv.taps() <= Window::MOST_TAPS && conv.y.stride * conv.x.stride <= Window::MOST_PHASES; }

// Of a tile of height x width outputs.
inline Window window_of(const Conv& conv, int height, int width) {
    Window window{detail::side_of(conv.y, height), detail::side_of(conv.x, width), 0, {}, {}};
    detail::add_phase(window, conv, 0, 0, detail::taps_of(conv.y, window.y), detail::taps_of(conv.x, window.x));
    return window;
}

// Of a tile of the input's gradient: height x width pixels of each phase.
inline Window transposed_window_of(const Conv& conv, int height, int width) {
    Window window{detail::transposed_side_of(conv.y, height), detail::transposed_side_of(conv.x, width), 0, {}, {}};
    for (int y = 0; y < conv.y.stride; ++y)
        for (int x = 0; x < conv.x.stride; ++x)
            detail::add_phase(window, conv, y, x, detail::transposed_taps_of(conv.y, window.y, y), detail::transposed_taps_of(conv.x, window.x, x));
    return window;
}

}  // namespace fused_preact::cuda
