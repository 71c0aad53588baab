// Planes: the scratch copy of the pixels that a tile reads, normalised once and used by all taps and all output channels.
//
// [row][phase of the column modulo stride][column][pitch], zeros outside the image; so a tap is an offset and pixels of an output row
// lie `pitch` apart, whatever the stride. Channels are padded with zeros to a multiple of 16.
#pragma once
#include "arena.h"
#include "records.h"

namespace fused_preact::FUSED_PREACT_ISA {

constexpr int CHANNEL_PAD = 16;

INLINE int64_t padded(int64_t channels) { return round_up(channels, CHANNEL_PAD); }

// Wide pixels are kept an odd number of cache lines apart, or a column of them would fall into few sets of the cache.
INLINE int64_t plane_pitch(int64_t channels) {
    int64_t c = padded(channels);
    return c > 64 && c % 32 == 0 ? c + 16 : c;
}

// Input indices first, first + 1, ..., of which an axis of a tile needs `count`.
struct Span {
    int64_t first, count;
    INLINE int64_t end() const { return first + count; }
};

// What a range of outputs reads.
INLINE Span inputs_of(const Axis& a, Span out) {
    return {out.first * a.stride - a.padding, (out.count - 1) * a.stride + (a.kernel - 1) * a.dilation + 1};
}

// The outputs that reach a range of inputs, together with `own`.
INLINE Span outputs_of(const Axis& a, Span in, Span own) {
    if (in.count <= 0) return own;
    int64_t first = -floor_div(-(in.first + a.padding - (a.kernel - 1) * a.dilation), a.stride);
    int64_t end = floor_div(in.end() - 1 + a.padding, a.stride) + 1;
    first = smaller(first, own.first);
    return {first, larger(end, own.end()) - first};
}

// An image: size, what a plane holds of it, and the stride that its columns and rows are taken apart by.
struct Window {
    int64_t size, stride, kernel, dilation;
    Span span;

    INLINE int64_t phases() const { return stride; }
    INLINE int64_t columns() const { return ceil_div(span.count, stride); }
    // Whether a tap reads indices of this phase at all.
    INLINE bool needed(int64_t phase) const {
        for (int64_t r = 0; r < smaller(kernel, stride); ++r)
            if (r * dilation % stride == phase) return true;
        return false;
    }
};

template <class E>
struct Plane {
    E* data;
    int64_t pitch, phase, row;

    INLINE void shape(const Window& w) {
        phase = w.columns() * pitch;
        row = w.phases() * phase;
    }
    static INLINE int64_t elements(const Window& h, const Window& w, int64_t pitch) { return h.span.count * w.phases() * w.columns() * pitch; }
    // Of the tap with displacement (r, s) in pixels, from the place of the output pixel.
    INLINE int64_t tap(const Window& w, int64_t r, int64_t s) const { return r * row + s % w.stride * phase + s / w.stride * pitch; }
};

template <class E>
INLINE void clear(E* p, int64_t count) {
    __builtin_memset(p, 0, larger<int64_t>(count, 0) * sizeof(E));
}

// Fill rows [first, end) of a plane with pixels of one image: fill(pixel, step, row, destination, count) writes `count` pixels of image row
// `row`, the first being column `pixel`, `step` columns apart. The plane has the shape of the largest tile's.
template <class E, class Fill>
INLINE void fill_plane(const Plane<E>& plane, const Window& h, const Window& w, int64_t first, int64_t end_row, Fill&& fill) {
    for (int64_t j = first; j < end_row; ++j) {
        if (!h.needed(j % h.stride)) continue;
        int64_t y = h.span.first + j;
        E* row = plane.data + j * plane.row;
        if (y < 0 || y >= h.size) {
            clear(row, plane.row);
            continue;
        }
        for (int64_t f = 0; f < w.phases(); ++f) {
            if (!w.needed(f)) continue;
            E* columns = row + f * plane.phase;
            int64_t x = w.span.first + f, total = w.columns();
            int64_t begin = smaller(total, x < 0 ? ceil_div(-x, w.stride) : 0);
            int64_t end = smaller(total, x >= w.size ? 0 : ceil_div(w.size - x, w.stride));
            end = larger(begin, end);
            clear(columns, begin * plane.pitch);
            if (end > begin) fill(x + begin * w.stride, w.stride, y, columns + begin * plane.pitch, end - begin);
            clear(columns + end * plane.pitch, (total - end) * plane.pitch);
        }
    }
}

// A share of the rows of several images' planes, one after the other: fill(image, pixel, step, row, destination, count).
template <class E, class Fill>
INLINE void fill_planes(Plane<E> plane, int64_t apart, Span images, const Window& h, const Window& w, int t, int threads, Fill&& fill) {
    const int64_t rows = h.span.count;
    const Share share(images.count * rows, t, threads);
    for (int64_t image = share.begin / rows; image * rows < share.end; ++image) {
        Plane<E> own = plane;
        own.data += image * apart;
        fill_plane(own, h, w, larger<int64_t>(0, share.begin - image * rows), smaller(rows, share.end - image * rows),
                   [&](int64_t pixel, int64_t step, int64_t row, E* to, int64_t n) { fill(images.first + image, pixel, step, row, to, n); });
    }
}

}  // namespace fused_preact::FUSED_PREACT_ISA
