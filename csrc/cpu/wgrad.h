// The weight side of backward: dweight[k][tap][c] = sum over output pixels: dy[pixel][k] * z[pixel + tap][c].
//
// Lanes run over the channels of one side, rows over those of the other. Every slice of the tiles is added up in a buffer
// [row][tap][lane] of its own, and the buffers are added in order. Of a wide layer's, each thread has some rows instead, and all tiles.
#pragma once
#include "pack.h"
#include "prologue.h"
#include "tiles.h"

namespace fused_preact::FUSED_PREACT_ISA {

constexpr int64_t WGRAD_ROWS_BYTES = 256 << 10;

template <class E>
struct WeightGradient {
    using A = wide<E>;

    bool over_c;  // lanes run over c
    int64_t rows, lanes, row_depth, lane_depth, taps, pitch;

    WeightGradient(const Conv& conv, int64_t c, int64_t k) {
        const int64_t cs = padded(c), ks = padded(k);
        over_c = cs % PANEL<A> == 0 || ks % PANEL<A> != 0;
        rows = over_c ? k : c;
        lanes = over_c ? c : k;
        row_depth = padded(rows);
        lane_depth = padded(lanes);
        taps = conv.h.kernel * conv.w.kernel;
        pitch = taps * lane_depth;
    }

    // Outputs: images, rows of each, pixels or pairs of them in a row.
    struct Patch {
        int64_t images, rows, pixels;
    };

    // Rows of thread t: whole blocks.
    Share rows_of(int t, int threads) const {
        Share blocks(row_depth / WGRAD_ROWS, t, threads);
        blocks.begin *= WGRAD_ROWS;
        blocks.end *= WGRAD_ROWS;
        return blocks;
    }
    // So many rows are added up at a time: whole blocks that stay in L2.
    int64_t rows_at_once() const { return larger<int64_t>(1, WGRAD_ROWS_BYTES / (WGRAD_ROWS * pitch * int64_t(sizeof(A)))) * WGRAD_ROWS; }

    // Add a tile to rows `part` of the buffer (or, fresh, set them). dy and z: what the tile's first output has and what tap (0, 0) of it
    // reads; offset(r, s): from there to what tap (r, s) reads. dense: the taps of a kernel row lie side by side in z, all of their lanes
    // one range.
    template <class Offset>
    void add(A* buffer, Share part, bool fresh, PixelRows<E> z, PixelRows<E> dy, bool dense, const Conv& conv, const Patch& patch,
             Prefetch& prefetch, Offset&& offset) const {
        const bool ranged = dense && over_c;
        const int64_t across = ranged ? 1 : conv.w.kernel, width = ranged ? conv.w.kernel * lane_depth : lane_depth;
        for (int64_t r = 0, strip = 0; r < conv.h.kernel; ++r)
            for (int64_t s = 0; s < across; ++s, ++strip) {
                PixelRows<E> shifted = z;
                shifted.data += offset(r, s);
                const PixelRows<E>&row_side = over_c ? dy : shifted, &lane_side = over_c ? shifted : dy;
                auto columns = [&]<int NV>(int64_t lane) {
                    for (int64_t row = part.begin; row < part.end; row += WGRAD_ROWS)
                        pixels_block<E, WGRAD_ROWS, NV>(row_side.from(row), lane_side.from(lane), patch.images, patch.rows, patch.pixels,
                                                        buffer + (row - part.begin) * pitch + strip * width + lane, pitch, fresh, prefetch);
                };
                int64_t lane = 0;
                if (WGRAD_ROWS == 8 && width % (2 * LANES<A>))
                    for (; lane + 3 * LANES<A> <= width; lane += 3 * LANES<A>) columns.template operator()<3>(lane);
                for (; lane + 2 * LANES<A> <= width; lane += 2 * LANES<A>) columns.template operator()<2>(lane);
                for (; lane < width; lane += LANES<A>) columns.template operator()<1>(lane);
            }
    }

    // How often add() advances a prefetch, roughly.
    int64_t advances(int64_t rows_, int64_t pixels) const {
        return row_depth / WGRAD_ROWS * ceil_div(pitch, PANEL<A>) * rows_ * ceil_div(pixels, PREFETCH_STEPS);
    }

    // Rows `part` of the sum of `count` buffers, `apart` elements apart, into a weight of the given strides (k, c, h, w).
    template <class S>
    void write(S* dweight, const int64_t* strides, const Conv& conv, const A* buffers, int64_t count, int64_t apart, Share part, int64_t first) const {
        const int64_t row_stride = over_c ? strides[0] : strides[1], lane_stride = over_c ? strides[1] : strides[0];
        const bool streams = rows * taps * lanes * int64_t(sizeof(S)) >= STREAM_BYTES && lanes % LANES<A> == 0;
        for (int64_t row = part.begin; row < smaller(part.end, rows); ++row)
            for (int64_t tap = 0; tap < taps; ++tap) {
                const A* from = buffers + (row - first) * pitch + tap * lane_depth;
                S* to = dweight + row * row_stride + tap / conv.w.kernel * strides[2] + tap % conv.w.kernel * strides[3];
                const bool streamed = streams && uintptr_t(to) % (LANES<A> * sizeof(S)) == 0;
                for (int64_t i = 0; i < lanes; i += LANES<A>) {
                    Vec<A> sum = load(from + i);
                    for (int64_t t = 1; t < count; ++t) sum += load(from + t * apart + i);
                    if (lane_stride == 1 && streamed)
                        stream(to + i, sum);
                    else if (lane_stride == 1 && i + LANES<A> <= lanes)
                        store(to + i, sum);
                    else
                        for (int64_t lane = i; lane < smaller<int64_t>(lanes, i + LANES<A>); ++lane) to[lane * lane_stride] = narrowed<S>(sum[lane - i]);
                }
            }
        if (streams) stream_fence();
    }
};

}  // namespace fused_preact::FUSED_PREACT_ISA
