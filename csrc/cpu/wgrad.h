// The weight side of backward: dweight[k][tap][c] = sum over output pixels: dy[pixel][k] * z[pixel + tap][c].
//
// Lanes run over the channels of one side, rows over those of the other. Every thread adds its tiles to a buffer [row][tap][lane] of its
// own, and the buffers are added in the order of the threads. Where a buffer would not stay in L2 each thread has some of the rows
// instead, and all tiles.
#pragma once
#include "mac.h"
#include "tiles.h"

namespace fused_preact::FUSED_PREACT_ISA {

constexpr int64_t WGRAD_BUFFER_BYTES = 384 << 10;

template <class E>
struct WeightGradient {
    using A = wide<E>;

    bool over_c;  // lanes run over c
    bool sliced;
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
        sliced = row_depth * pitch * int64_t(sizeof(A)) > WGRAD_BUFFER_BYTES;
    }

    // Rows of thread t when they are sliced: whole blocks.
    Share slice(int t, int threads) const {
        Share blocks(row_depth / WGRAD_ROWS, t, threads);
        blocks.begin *= WGRAD_ROWS;
        blocks.end *= WGRAD_ROWS;
        return blocks;
    }
    int64_t buffer_elements(int threads) const {
        const int64_t blocks = row_depth / WGRAD_ROWS;
        return (sliced ? ceil_div(blocks, threads) : blocks) * WGRAD_ROWS * pitch;
    }

    // Add a tile to rows `slice` of the buffer (or, fresh, set them). dy and z point to the tile's first output pixel, and what tap 0 of it
    // reads.
    void add(A* buffer, Share slice, bool fresh, const Plane<E>& z, const Window& w, const Plane<E>& dy, const Conv& conv, const Tile& tile) const {
        // Taps that read neighbouring pixels of dense channels lie side by side in z: their lanes are one range.
        const bool dense = over_c && w.stride == 1 && w.dilation == 1 && z.pitch == lane_depth;
        const int64_t across = dense ? 1 : conv.w.kernel, width = dense ? conv.w.kernel * lane_depth : lane_depth;
        for (int64_t r = 0, strip = 0; r < conv.h.kernel; ++r)
            for (int64_t s = 0; s < across; ++s, ++strip) {
                Plane<E> shifted = z;
                shifted.data += z.tap(w, r * conv.h.dilation, s * conv.w.dilation);
                shifted.row *= conv.h.stride;
                const Plane<E>&row_side = over_c ? dy : shifted, &lane_side = over_c ? shifted : dy;
                int64_t lane = 0;
                for (; lane + 3 * LANES<A> <= width && WGRAD_ROWS == 8 && width % (2 * LANES<A>); lane += 3 * LANES<A>)
                    column<3>(buffer + strip * width, slice, fresh, row_side, lane_side, lane, tile);
                for (; lane + 2 * LANES<A> <= width; lane += 2 * LANES<A>)
                    column<2>(buffer + strip * width, slice, fresh, row_side, lane_side, lane, tile);
                for (; lane < width; lane += LANES<A>) column<1>(buffer + strip * width, slice, fresh, row_side, lane_side, lane, tile);
            }
    }

    template <int NV>
    void column(A* buffer, Share slice, bool fresh, const Plane<E>& rows_of, const Plane<E>& lanes_of, int64_t lane, const Tile& tile) const {
        for (int64_t row = slice.begin; row < slice.end; row += WGRAD_ROWS)
            pixels_block<E, WGRAD_ROWS, NV>({rows_of.data + row, rows_of.pitch, rows_of.row}, {lanes_of.data + lane, lanes_of.pitch, lanes_of.row},
                                            tile.rows.count, tile.columns.count, buffer + (row - slice.begin) * pitch + lane, pitch, fresh);
    }

    // Rows `slice` of the sum of `count` buffers, `apart` elements apart, into a weight of the given strides (k, c, h, w).
    template <class S>
    void write(S* dweight, const int64_t* strides, const Conv& conv, const A* buffers, int count, int64_t apart, Share slice, int64_t first) const {
        const int64_t row_stride = over_c ? strides[0] : strides[1], lane_stride = over_c ? strides[1] : strides[0];
        for (int64_t row = slice.begin; row < smaller(slice.end, rows); ++row)
            for (int64_t tap = 0; tap < taps; ++tap) {
                const A* from = buffers + (row - first) * pitch + tap * lane_depth;
                S* to = dweight + row * row_stride + tap / conv.w.kernel * strides[2] + tap % conv.w.kernel * strides[3];
                for (int64_t i = 0; i < lanes; ++i) {
                    A sum = from[i];
                    for (int t = 1; t < count; ++t) sum += from[t * apart + i];
                    to[i * lane_stride] = narrowed<S>(sum);
                }
            }
    }
};

}  // namespace fused_preact::FUSED_PREACT_ISA
