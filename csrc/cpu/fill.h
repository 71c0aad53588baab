// Filling the planes of a tile: z from x, dy as it is or deferred. Threads may share the rows.
#pragma once
#include "prologue.h"
#include "tiles.h"

namespace fused_preact::FUSED_PREACT_ISA {

// The inputs that a tile of outputs owns: as many strides as outputs, the last tile also what a stride leaves over.
INLINE Span inputs_owned(const Axis& a, Span out) {
    int64_t first = smaller(a.in, out.first * a.stride);
    return {first, (out.end() >= a.out ? a.in : smaller(a.in, out.end() * a.stride)) - first};
}

// z = relu(bn(x)) of what a tile's outputs read.
template <class S, class E>
struct ZPlanes {
    const Conv conv;
    const int64_t c;  // of a group
    Window h, w;
    Plane<E> plane;
    int64_t image;  // elements

    ZPlanes(const Conv& conv_, const Tiling& tiling)
        : conv(conv_),
          c(conv.c / conv.groups),
          h{conv.h.in, conv.h.stride, conv.h.kernel, conv.h.dilation, inputs_of(conv.h, {0, tiling.rows})},
          w{conv.w.in, conv.w.stride, conv.w.kernel, conv.w.dilation, inputs_of(conv.w, {0, tiling.columns})},
          plane{nullptr, plane_pitch(c), 0, 0},
          image(plane.elements(h, w, plane.pitch)) {
        plane.shape(w);
    }

    // What tap (r, s) reads, from what tap (0, 0) does.
    INLINE int64_t tap(int64_t r, int64_t s) const { return plane.tap(w, r * conv.h.dilation, s * conv.w.dilation); }

    // The share of thread t of a team.
    void fill(E* planes, const void* from, int64_t group, const Norm<wide<S>>& norm, const Tile& tile, int t, int team) const {
        const S* x = static_cast<const S*>(from) + group * c;
        Window rows = h, columns = w;
        rows.span = inputs_of(conv.h, tile.rows);
        columns.span = inputs_of(conv.w, tile.columns);
        Plane<E> z = plane;
        z.data = planes;
        fill_planes(z, image, tile.images, rows, columns, t, team, [&](int64_t n, int64_t pixel, int64_t step, int64_t row, E* to, int64_t count) {
            activate(x + ((n * conv.h.in + row) * conv.w.in + pixel) * conv.c, step * conv.c, to, plane.pitch, count, c, padded(c), norm);
        });
    }
};

// dy of a tile and of the outputs around it that its inputs reach.
template <class S, class E>
struct DyPlanes {
    const Conv conv;
    const int64_t k;  // of a group
    const bool inputs;
    Window h, w;
    Plane<E> plane;
    int64_t image, origin_row, origin_column;  // elements; where a tile's first output lies

    DyPlanes(const Conv& conv_, const Tiling& tiling, bool inputs_) : conv(conv_), k(conv.k / conv.groups), inputs(inputs_), plane{nullptr, plane_pitch(k), 0, 0} {
        const Tile first = tiling[0], last = tiling[tiling.count() - 1];
        h = {conv.h.out, 1, 1, 1, received(conv.h, first.rows)};
        w = {conv.w.out, 1, 1, 1, received(conv.w, first.columns)};
        origin_row = first.rows.first - h.span.first;
        origin_column = first.columns.first - w.span.first;
        h.span.count = larger(h.span.count, received(conv.h, last.rows).count);
        w.span.count = larger(w.span.count, received(conv.w, last.columns).count);
        plane.shape(w);
        image = plane.elements(h, w, plane.pitch);
    }

    // From a tile's first output on.
    INLINE const E* own(const E* planes, const Tile& tile) const {
        const int64_t row = tile.rows.first - received(conv.h, tile.rows).first, column = tile.columns.first - received(conv.w, tile.columns).first;
        return planes + row * plane.row + column * plane.pitch;
    }

    // The share of thread t of a team. A deferred dy that is wanted is written out on the way.
    void fill(E* planes, const Gradient& from, int64_t group, const Tile& tile, int t, int team) const {
        using A = wide<S>;
        Window rows = h, columns = w;
        rows.span = received(conv.h, tile.rows);
        columns.span = received(conv.w, tile.columns);
        Plane<E> dy = plane;
        dy.data = planes;
        const A* v = static_cast<const A*>(from.coeffs);
        const int64_t ch = group * k;
        const Incoming<S> in{static_cast<const S*>(from.dy), static_cast<const S*>(from.x), static_cast<const S*>(from.add),
                             v + ch, v + conv.k + ch, v + 2 * conv.k + ch, v + 3 * conv.k + ch, static_cast<S*>(from.out)};
        fill_planes(dy, image, tile.images, rows, columns, t, team, [&](int64_t n, int64_t pixel, int64_t, int64_t row, E* to, int64_t count) {
            auto part = [&](int64_t begin, int64_t end, bool write) {
                if (begin >= end) return;
                E* place = to + (begin - pixel) * plane.pitch;
                const int64_t at = ((n * conv.h.out + row) * conv.w.out + begin) * conv.k + ch;
                if (v)
                    receive<S, E, true>(in, at, conv.k, place, plane.pitch, end - begin, k, padded(k), write);
                else
                    receive<S, E, false>(in, at, conv.k, place, plane.pitch, end - begin, k, padded(k), write);
            };
            if (!in.out || row < tile.rows.first || row >= tile.rows.end()) return part(pixel, pixel + count, false);
            const int64_t begin = larger(pixel, tile.columns.first), end = smaller(pixel + count, tile.columns.end());
            part(pixel, begin, false);
            part(begin, end, true);
            part(end, pixel + count, false);
        });
    }

  private:
    Span received(const Axis& axis, Span out) const { return inputs ? outputs_of(axis, inputs_owned(axis, out), out) : out; }
};

}  // namespace fused_preact::FUSED_PREACT_ISA
