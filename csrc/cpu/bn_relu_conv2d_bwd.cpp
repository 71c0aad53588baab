// dgrad and wgrad of a fused convolution from one tile: dy and z lie in scratch once, and both read them there.
#include <omp.h>

#include "dgrad.h"
#include "kernels.h"
#include "slices.h"
#include "wgrad.h"

namespace fused_preact::FUSED_PREACT_ISA {
namespace {

template <class S, class E>
struct Scratch {
    using A = wide<S>;
    E *z, *dy;
    // Where the reduction over pixels takes pairs of them: z once for each tap of a kernel row.
    E *z_pairs, *dy_pairs;
    A *tile, *dweight_rows;  // where each thread has some rows of dweight
    Arena pixels;            // tables of the phases follow

    Scratch(Arena& arena, int64_t z_elements, int64_t dy_elements, int64_t z_pair_elements, int64_t dy_pair_elements, int64_t dweight_elements)
        : z(arena.take<E>(z_elements)),
          dy(arena.take<E>(dy_elements)),
          z_pairs(arena.take<E>(z_pair_elements)),
          dy_pairs(arena.take<E>(dy_pair_elements)),
          tile(arena.take<A>(CHUNK * PANEL<A>)),
          dweight_rows(arena.take<A>(dweight_elements)),
          pixels(arena) {}
};

// What a slice of the tiles adds up.
template <class A>
struct Partial {
    A* dweight;
    double* dbias;
    Sums<A> sums;
    bool fresh = true;  // nothing is in dweight yet

    Partial(Arena& arena, int64_t dweight_elements, int64_t c, int64_t k)
        : dweight(arena.take<A>(dweight_elements)), dbias(arena.take<double>(padded(k))), sums(arena, c) {}
};

template <class S, class E>
struct Bwd {
    using A = wide<S>;

    const BnReluConv2dBwd& args;
    const Conv conv;
    const int64_t c, k;
    const bool inputs, weights;  // whether their gradients are wanted
    const WeightGradient<E> wgrad;
    const Tiling tiling;
    Window z_rows, z_columns, dy_rows, dy_columns;
    Plane<E> z, dy;
    int64_t origin_row, origin_column;
    bool streams;
    Arena shared;
    A* identity;
    PhaseConvs<E> phases;
    size_t partial_bytes, thread_bytes, partials_at;
    Slices slices;

    Bwd(const BnReluConv2dBwd& a)
        : args(a),
          conv(flattened(a.conv)),
          c(conv.c / conv.groups),
          k(conv.k / conv.groups),
          inputs(a.emit != Emit::none),
          weights(a.dweight),
          wgrad(conv, c, k),
          tiling(tiling_of(conv, (plane_pitch(c) + plane_pitch(k)) * sizeof(E), wgrad.row_depth * wgrad.pitch * sizeof(E), a.threads)),
          z{nullptr, plane_pitch(c), 0, 0},
          dy{nullptr, plane_pitch(k), 0, 0},
          shared{static_cast<char*>(a.workspace.data)},
          identity(shared.take<A>(2 * conv.c)),
          phases(shared, conv, c, k),
          partial_bytes(bytes_of([&](Arena& arena) { partial(arena); })),
          slices(shared, tiling.count(), partial_bytes, a.threads) {
        const Tile first = tiling[0], last = tiling[tiling.count() - 1];
        z_rows = {conv.h.in, conv.h.stride, conv.h.kernel, conv.h.dilation, inputs_of(conv.h, first.rows)};
        z_columns = {conv.w.in, conv.w.stride, conv.w.kernel, conv.w.dilation, inputs_of(conv.w, first.columns)};
        dy_rows = {conv.h.out, 1, 1, 1, received(conv.h, first.rows)};
        dy_columns = {conv.w.out, 1, 1, 1, received(conv.w, first.columns)};
        origin_row = first.rows.first - dy_rows.span.first;
        origin_column = first.columns.first - dy_columns.span.first;
        dy_rows.span.count = larger(dy_rows.span.count, received(conv.h, last.rows).count);
        dy_columns.span.count = larger(dy_columns.span.count, received(conv.w, last.columns).count);
        z.shape(z_columns);
        dy.shape(dy_columns);
        partials_at = shared.used;
        shared.used += partial_bytes * slices.count;
        Arena counting{nullptr};
        Scratch<S, E> own = scratch(counting);
        own.pixels.template take<Pixels>(phases.count);
        for (int64_t i = 0; inputs && i < phases.count; ++i) Pixels(own.pixels, most_inputs());
        thread_bytes = own.pixels.used;
    }

    size_t bytes() const { return shared.used + thread_bytes * args.threads; }

    // The part of dy that a tile reads.
    Span received(const Axis& axis, Span out) const { return inputs ? outputs_of(axis, inputs_owned(axis, out), out) : out; }

    // Input pixels of one phase in a tile, at most.
    int64_t most_inputs() const {
        const Tile first = tiling[0], last = tiling[tiling.count() - 1];
        const int64_t rows = larger(inputs_owned(conv.h, first.rows).count, inputs_owned(conv.h, last.rows).count);
        const int64_t columns = larger(inputs_owned(conv.w, first.columns).count, inputs_owned(conv.w, last.columns).count);
        return larger<int64_t>(1, ceil_div(rows, conv.h.stride) * ceil_div(columns, conv.w.stride));
    }

    Scratch<S, E> scratch(Arena& arena) const {
        const bool pairs = weights && PAIR<E> == 2;
        const int64_t row_pairs = pairs ? 2 * ceil_div(tiling.columns, 2) : 0;
        return {arena, weights ? z.elements(z_rows, z_columns, z.pitch) : 0, dy.elements(dy_rows, dy_columns, dy.pitch),
                z_rows.span.count * row_pairs * conv.w.kernel * padded(c), tiling.rows * row_pairs * padded(k),
                weights && wgrad.by_rows ? wgrad.buffer_elements(args.threads) : 0};
    }
    Scratch<S, E> scratch(int thread) const {
        Arena arena{shared.data, shared.used + thread * thread_bytes};
        return scratch(arena);
    }
    Partial<A> partial(Arena& arena) const { return {arena, weights && !wgrad.by_rows ? wgrad.row_depth * wgrad.pitch : 0, c, k}; }
    Partial<A> partial(int64_t slice) const {
        Arena arena{shared.data, partials_at + slice * partial_bytes};
        return partial(arena);
    }

    void prepare() {
        streams = inputs && conv.groups == 1 && streamed<S>(args.out, conv.n * conv.h.in * conv.w.in, c);
        if (inputs) {
            // Blocks of neighbours must not run across rows of x either.
            const bool same = conv.w.stride == 1 && conv.w.in == conv.w.out && tiling.width % tiling.columns == 0;
            phases.prepare(conv, dy, origin_row, origin_column, c, k, same ? tiling.columns : 0);
        }
    }

    // One group, all threads.
    void run(int64_t group) {
        const Norm<A> norm = norm_of(args.bn, args.bn_pitch, conv.c, args.relu, identity).from(group * c);
        slices.reset();
#pragma omp parallel num_threads(args.threads)
        {
            const int t = omp_get_thread_num(), team = omp_get_num_threads();
            Scratch<S, E> own = scratch(t);
            const S* weight = static_cast<const S*>(args.weight) + group * k * conv.weight_strides[0];
            for (int64_t i = 0; inputs && i < phases.count; ++i) {
                const PhaseConv<E>& phase = phases.all[i];
                pack(phase.weights, weight, {c, conv.weight_strides[1]}, {k, conv.weight_strides[0]}, phase.taps, phase.count, t, team);
            }
#pragma omp barrier
            tiles(t, group, norm, own);
            if (streams) stream_fence();
#pragma omp barrier
            if (weights) finish_weights(group, norm, own, t, team);
            if (t == 0) finish_sums(group);
        }
    }

    void tiles(int t, int64_t group, const Norm<A>& norm, Scratch<S, E>& own) {
        const bool fused = weights && !wgrad.by_rows;
        if (!inputs && !fused && !args.dbias && !args.dy.out) return;
        Arena arena = own.pixels;
        Pixels* tables = arena.take<Pixels>(phases.count);
        for (int64_t i = 0; inputs && i < phases.count; ++i) tables[i] = Pixels(arena, most_inputs());
        slices.work(
            t,
            [&](int64_t slice) {
                Partial<A> sums = partial(slice);
                sums.sums.reset();
                clear(sums.dbias, k);
                return sums;
            },
            [&](Partial<A>& sums, int64_t i, int64_t next) {
                const Tile tile = tiling[i];
                const Plane<E> dy_plane = fill_dy(tile, group, own, {0, k, true});
                if (args.dbias) add_bias(dy_plane, tile, sums);
                Prefetch prefetch;
                if (next >= 0) fetch(prefetch, tiling[next]);
                if (inputs) input_gradient(tile, group, norm, own, sums, tables, prefetch);
                if (fused) {
                    const Plane<E> z_plane = fill_z(tile, group, norm, own, {0, c, true});
                    add_weights(own, sums.dweight, {wgrad.row_depth, 0, 1}, sums.fresh, z_plane, {0, c, true}, dy_plane, {0, k, true}, tile, prefetch);
                    sums.fresh = false;
                }
            },
            [](Partial<A>&) {});
    }

    // Channels to fill, and whether a deferred dy is written out on the way.
    struct Fill {
        int64_t first, count;
        bool write;
    };

    // dy of a tile and around it; the plane returned starts at the tile's first output.
    Plane<E> fill_dy(const Tile& tile, int64_t group, const Scratch<S, E>& own, Fill channels) const {
        Window rows = dy_rows, columns = dy_columns;
        rows.span = received(conv.h, tile.rows);
        columns.span = received(conv.w, tile.columns);
        Plane<E> plane = dy;
        plane.data = own.dy;
        const A* v = static_cast<const A*>(args.dy.coeffs);
        const int64_t ch = group * k + channels.first;
        const Incoming<S> in{static_cast<const S*>(args.dy.dy), static_cast<const S*>(args.dy.x), static_cast<const S*>(args.dy.add),
                             v + ch, v + conv.k + ch, v + 2 * conv.k + ch, v + 3 * conv.k + ch, static_cast<S*>(args.dy.out)};
        const int64_t depth = padded(channels.count);
        fill_plane(plane, rows, columns, [&](int64_t pixel, int64_t, int64_t row, E* to, int64_t n) {
            const int64_t image = tile.image * conv.h.out + row;
            auto part = [&](int64_t from, int64_t end, bool write) {
                if (from >= end) return;
                E* place = to + channels.first + (from - pixel) * dy.pitch;
                const int64_t at = (image * conv.w.out + from) * conv.k + ch;
                if (v)
                    receive<S, E, true>(in, at, conv.k, place, dy.pitch, end - from, channels.count, depth, write);
                else
                    receive<S, E, false>(in, at, conv.k, place, dy.pitch, end - from, channels.count, depth, write);
            };
            if (!in.out || !channels.write || row < tile.rows.first || row >= tile.rows.end()) return part(pixel, pixel + n, false);
            const int64_t begin = larger(pixel, tile.columns.first), end = smaller(pixel + n, tile.columns.end());
            part(pixel, begin, false);
            part(begin, end, true);
            part(end, pixel + n, false);
        });
        plane.data += (tile.rows.first - rows.span.first) * plane.row + (tile.columns.first - columns.span.first) * plane.pitch;
        return plane;
    }

    Plane<E> fill_z(const Tile& tile, int64_t group, const Norm<A>& norm, const Scratch<S, E>& own, Fill channels) const {
        Window rows = z_rows, columns = z_columns;
        rows.span = inputs_of(conv.h, tile.rows);
        columns.span = inputs_of(conv.w, tile.columns);
        Plane<E> plane = z;
        plane.data = own.z;
        const S* x = static_cast<const S*>(args.x) + tile.image * conv.h.in * conv.w.in * conv.c + group * c + channels.first;
        const Norm<A> part = norm.from(channels.first);
        fill_plane(plane, rows, columns, [&](int64_t pixel, int64_t step, int64_t row, E* to, int64_t n) {
            activate(x + (row * conv.w.in + pixel) * conv.c, step * conv.c, to + channels.first, z.pitch, n, channels.count, padded(channels.count), part);
        });
        return plane;
    }

    void input_gradient(const Tile& tile, int64_t group, const Norm<A>& norm, Scratch<S, E>& own, Partial<A>& sums, Pixels* tables, Prefetch& prefetch) const {
        const Span rows = inputs_owned(conv.h, tile.rows), columns = inputs_owned(conv.w, tile.columns);
        const A* v = static_cast<const A*>(args.coeffs);
        auto at = [](const void* p, int64_t offset) { return p ? static_cast<const S*>(p) + offset : nullptr; };
        for (int64_t i = 0; i < phases.count; ++i) {
            const PhaseConv<E>& phase = phases.all[i];
            const int64_t down = ceil_div(rows.count - phase.row, conv.h.stride), right = ceil_div(columns.count - phase.column, conv.w.stride);
            if (down <= 0 || right <= 0) continue;
            Pixels& pixels = tables[i];
            pixels.set(down, right, dy.row, dy.pitch, conv.h.stride * conv.w.in, conv.w.stride);
            const int64_t pixel = (tile.image * conv.h.in + rows.first + phase.row) * conv.w.in + columns.first + phase.column;
            const int64_t first = pixel * conv.c + group * c, ch = group * c;
            const Leaving<S> to{args.emit, at(args.x, first), at(args.add_dz, first), at(args.residual_grad, first),
                                const_cast<S*>(at(args.out, first)), conv.c, c, streams, norm, v + ch, v + conv.c + ch, v + 2 * conv.c + ch,
                                v + 3 * conv.c + ch, &sums.sums};
            const Gemm<E> gemm{own.dy, phase.weights, phase.segments, phase.segment_count, padded(k) * phase.count, phase.three_taps};
            // The phases have about the same number of pixels; the first with taps fetches for all.
            const int64_t later = weights && !wgrad.by_rows ? wgrad.advances(tile.rows.count, ceil_div(tile.columns.count, PAIR<E>)) : 0;
            prefetch.spread(gemm.advances(c, pixels.count) + later);
            gemm.run(c, pixels, own.tile, prefetch, [&]<int NV>(int64_t lane, int64_t at, int64_t n, const A* values) {
                leave<S, NV>(to, values, pixels.memory + at, n, lane);
            });
        }
    }

    // A tile's share of dweight, from the channels that the planes hold.
    void add_weights([[maybe_unused]] Scratch<S, E>& own, A* dweight, Share part, bool fresh, const Plane<E>& z_plane, [[maybe_unused]] Fill z_part,
                     const Plane<E>& dy_plane, [[maybe_unused]] Fill dy_part, const Tile& tile, Prefetch& prefetch) const {
#if defined(__AVX512BF16__)
        if constexpr (PAIR<E> == 2) return add_weights_of_pairs(own, dweight, part, fresh, z_plane, z_part, dy_plane, dy_part, tile, prefetch);
#endif
        const bool dense = conv.w.stride == 1 && conv.w.dilation == 1 && z_plane.pitch == wgrad.lane_depth;
        wgrad.add(dweight, part, fresh, {z_plane.data, z_plane.pitch, conv.h.stride * z_plane.row}, {dy_plane.data, dy_plane.pitch, dy_plane.row},
                  dense, conv, tile.rows.count, tile.columns.count, prefetch, [&](int64_t r, int64_t s) { return place(z_plane, r, s); });
    }

    // What tap (r, s) reads, from what tap (0, 0) does.
    int64_t place(const Plane<E>& plane, int64_t r, int64_t s) const { return plane.tap(z_columns, r * conv.h.dilation, s * conv.w.dilation); }

#if defined(__AVX512BF16__)
    void add_weights_of_pairs(Scratch<S, E>& own, A* dweight, Share part, bool fresh, const Plane<E>& z_plane, Fill z_part, const Plane<E>& dy_plane,
                              Fill dy_part, const Tile& tile, Prefetch& prefetch) const {
        const int64_t rows = tile.rows.count, pixels = tile.columns.count, pairs = ceil_div(pixels, 2);
        const int64_t tap = 2 * padded(c), z_pitch = conv.w.kernel * tap, z_row = pairs * z_pitch, dy_pitch = 2 * padded(k), dy_row = pairs * dy_pitch;
        const int64_t inputs = inputs_of(conv.h, tile.rows).count;
        for (int64_t j = 0; j < inputs; ++j)
            for (int64_t s = 0; z_rows.needed(j % conv.h.stride) && s < conv.w.kernel; ++s)
                pair_rows(z_plane.data + j * z_plane.row + place(z_plane, 0, s) + z_part.first, z_plane.pitch, pixels, padded(z_part.count),
                            own.z_pairs + j * z_row + s * tap + 2 * z_part.first, z_pitch);
        for (int64_t i = 0; i < rows; ++i)
            pair_rows(dy_plane.data + i * dy_plane.row + dy_part.first, dy_plane.pitch, pixels, padded(dy_part.count),
                        own.dy_pairs + i * dy_row + 2 * dy_part.first, dy_pitch);
        wgrad.add(dweight, part, fresh, {own.z_pairs, z_pitch, conv.h.stride * z_row}, {own.dy_pairs, dy_pitch, dy_row}, true, conv, rows, pairs, prefetch,
                  [&](int64_t r, int64_t s) { return r * conv.h.dilation * z_row + s * tap; });
    }
#endif

    void add_bias(const Plane<E>& plane, const Tile& tile, Partial<A>& sums) const {
        for (int64_t ch = 0; ch < k; ++ch) {
            double sum = 0;
            for (int64_t i = 0; i < tile.rows.count; ++i)
                for (int64_t j = 0; j < tile.columns.count; ++j) sum += double(widened(plane.data[i * plane.row + j * plane.pitch + ch]));
            sums.dbias[ch] += sum;
        }
    }

    void finish_weights(int64_t group, const Norm<A>& norm, Scratch<S, E>& own, int t, int team) const {
        S* dweight = static_cast<S*>(args.dweight) + group * k * conv.weight_strides[0];
        if (!wgrad.by_rows) {
            wgrad.write(dweight, conv.weight_strides, conv, partial(0).dweight, slices.count, partial_bytes / sizeof(A), {wgrad.rows, t, team}, 0);
            return;
        }
        Prefetch nothing;
        // As many parts as threads were asked for, and buffers sized for; the team may be smaller.
        for (int i = t; i < args.threads; i += team) {
            const Share rows = wgrad.rows_of(i, args.threads);
            const Fill part{rows.begin, smaller(rows.end, wgrad.rows) - rows.begin, false}, all{0, wgrad.lanes, false};
            if (part.count <= 0) continue;
            for (int64_t j = 0; j < tiling.count(); ++j) {
                const Tile tile = tiling[j];
                const Plane<E> dy_plane = fill_dy(tile, group, own, wgrad.over_c ? part : all);
                const Plane<E> z_plane = fill_z(tile, group, norm, own, wgrad.over_c ? all : part);
                add_weights(own, own.dweight_rows, rows, j == 0, z_plane, wgrad.over_c ? all : part, dy_plane, wgrad.over_c ? part : all, tile, nothing);
            }
            wgrad.write(dweight, conv.weight_strides, conv, own.dweight_rows, 1, 0, rows, rows.begin);
        }
    }

    void finish_sums(int64_t group) const {
        if (!args.sums && !args.dbias) return;
        Partial<A> all = partial(0);
        for (int64_t slice = 1; slice < slices.count; ++slice) {
            const Partial<A> more = partial(slice);
            all.sums.merge(more.sums);
            for (int64_t i = 0; i < k; ++i) all.dbias[i] += more.dbias[i];
        }
        const A* invstd = args.bn ? static_cast<const A*>(args.bn) + args.bn_pitch : identity + conv.c;
        if (args.sums) write_sums(all.sums, c, conv.c, group * c, invstd, static_cast<A*>(args.sums));
        for (int64_t i = 0; args.dbias && i < k; ++i) static_cast<A*>(args.dbias)[group * k + i] = A(all.dbias[i]);
    }

    // What the next tile reads, where it is contiguous.
    void fetch(Prefetch& prefetch, const Tile& next) const {
        if ((tiling.columns < tiling.width && tiling.height > 1) || conv.groups > 1) return;
        const Span rows = inputs_owned(conv.h, next.rows), columns = inputs_owned(conv.w, next.columns);
        const int64_t y = (next.image * conv.h.out + next.rows.first) * conv.w.out + next.columns.first;
        const int64_t x = (next.image * conv.h.in + rows.first) * conv.w.in + columns.first;
        auto add = [&](const void* p, int64_t pixel, int64_t pixels, int64_t channels) {
            if (p) prefetch.add(static_cast<const S*>(p) + pixel * channels, pixels * channels * sizeof(S));
        };
        const int64_t y_pixels = next.rows.count * next.columns.count, x_pixels = rows.count * columns.count;
        add(args.dy.dy, y, y_pixels, k);
        add(args.dy.x, y, y_pixels, k);
        add(args.dy.add, y, y_pixels, k);
        add(args.x, x, x_pixels, c);
        add(args.residual_grad, x, x_pixels, c);
    }
};

template <class S, class E>
Status run(const BnReluConv2dBwd& args) {
    using A = wide<S>;
    Bwd<S, E> bwd(args);
    if (bwd.bytes() > args.workspace.bytes) return {nullptr, bwd.bytes()};
    if (args.sums) clear(static_cast<A*>(args.sums), args.tiles * 2 * args.conv.c);
    bwd.prepare();
    for (int64_t group = 0; group < args.conv.groups; ++group) bwd.run(group);
    return {};
}

}  // namespace

Status launch_bn_relu_conv2d_bwd(const BnReluConv2dBwd& given) {
    BnReluConv2dBwd args = given;
    args.threads = threads_for(given.conv, given.threads);
    switch (args.dtype) {
        case Dtype::float32:
            return run<float, float>(args);
        case Dtype::float64:
            return run<double, double>(args);
        case Dtype::bfloat16:
            return run<bf16, paired>(args);
    }
    return {"unknown dtype"};
}

}  // namespace fused_preact::FUSED_PREACT_ISA
