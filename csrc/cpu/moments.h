// Statistics of what a thread writes: shifted sums of a group of pixels, merged into double by Chan's formula.
//
// The shift is the mean of the first pixels of the group: m2 >= (shift - mean)^2 times their number, so no more digits cancel than the
// group has pixels to each of them, whatever the data.
#pragma once
#include "arena.h"
#include "plane.h"

namespace fused_preact::FUSED_PREACT_ISA {

constexpr int64_t GROUP_PIXELS = 384;

template <class A>
struct Moments {
    int64_t channels;  // padded
    A *shift, *sum, *square;
    double *mean, *m2, *count;
    int64_t pending = 0;

    INLINE Moments(Arena& arena, int64_t c) : channels(padded(c)) {
        shift = arena.take<A>(channels);
        sum = arena.take<A>(channels);
        square = arena.take<A>(channels);
        mean = arena.take<double>(channels);
        m2 = arena.take<double>(channels);
        count = arena.take<double>(1);
    }

    void reset() {
        *count = 0;
        for (int64_t i = 0; i < channels; ++i) sum[i] = square[i] = 0, mean[i] = m2[i] = 0;
    }

    // All channels have added `pixels` more values.
    INLINE void added(int64_t pixels) {
        pending += pixels;
        if (pending >= GROUP_PIXELS) flush();
    }

    void flush() {
        if (!pending) return;
        double n = double(pending), total = *count + n, share = n / total, weight = *count * share, inverse = 1 / n;
        for (int64_t i = 0; i < channels; ++i) {
            double s = sum[i], group = shift[i] + s * inverse, delta = group - mean[i];
            // mean = mean + delta*n/total,  m2 = m2 + m2_group + delta^2*count*n/total
            mean[i] += delta * share;
            m2[i] += (square[i] - s * s * inverse) + delta * delta * weight;
            sum[i] = square[i] = 0;
        }
        *count = total;
        pending = 0;
    }

    void merge(const Moments& other) {
        if (*other.count == 0) return;
        double total = *count + *other.count, share = *other.count / total, weight = *count * share;
        for (int64_t i = 0; i < channels; ++i) {
            double delta = other.mean[i] - mean[i];
            mean[i] += delta * share;
            m2[i] += other.m2[i] + delta * delta * weight;
        }
        *count = total;
    }
};

// The contract's stats [tiles, 3, channels]: everything in the first tile; the others stay neutral. m2 is never negative.
template <class A>
void write_stats(const Moments<A>& m, int64_t channels, int64_t total_channels, int64_t offset, A* stats) {
    for (int64_t i = 0; i < channels; ++i) {
        stats[offset + i] = A(*m.count);
        stats[total_channels + offset + i] = A(m.mean[i]);
        stats[2 * total_channels + offset + i] = A(m.m2[i] < 0 ? 0 : m.m2[i]);
    }
}

// The two sums of a norm's backward, sum g and sum g*(x - mean): of a tile in the accumulators' type, over tiles in double.
template <class A>
struct Sums {
    int64_t channels;
    double *g, *gx;

    INLINE Sums(Arena& arena, int64_t c) : channels(padded(c)) {
        g = arena.take<double>(channels);
        gx = arena.take<double>(channels);
    }
    void reset() {
        for (int64_t i = 0; i < channels; ++i) g[i] = gx[i] = 0;
    }
    // LANES values of one tile, from channel c on.
    INLINE void add(int64_t c, Vec<A> tile_g, Vec<A> tile_gx) {
        UNROLL for (int i = 0; i < LANES<A>; ++i) {
            g[c + i] += double(tile_g[i]);
            gx[c + i] += double(tile_gx[i]);
        }
    }
    void merge(const Sums& other) {
        for (int64_t i = 0; i < channels; ++i) g[i] += other.g[i], gx[i] += other.gx[i];
    }
};

// The contract's sums [tiles, 2, channels], everything in the first tile: sum g, sum g*xhat with xhat = (x - mean)*invstd.
template <class A>
void write_sums(const Sums<A>& s, int64_t channels, int64_t total_channels, int64_t offset, const A* invstd, A* sums) {
    for (int64_t i = 0; i < channels; ++i) {
        sums[offset + i] = A(s.g[i]);
        sums[total_channels + offset + i] = A(s.gx[i] * double(invstd[offset + i]));
    }
}

}  // namespace fused_preact::FUSED_PREACT_ISA
