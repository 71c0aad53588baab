// dgrad and wgrad of a fused convolution from one tile: dy and z lie in scratch once, and both read them there.
#include <omp.h>

#include "dgrad.h"
#include "kernels.h"
#include "slices.h"
#include "wgrad.h"
#include "wide.h"

namespace fused_preact::FUSED_PREACT_ISA {
namespace {

// What a thread has for itself, but for the planes of a wide layer, which all threads share.
template <class S, class E>
struct Scratch {
    using A = wide<S>;
    E *z, *dy;
    // Where the reduction over pixels takes pairs of them: z once for each tap of a kernel row.
    E *z_pairs, *dy_pairs;
    E* packed;
    A *tile, *dweight_rows;
    Pixels* pixels;  // of each phase
};

// What a slice of the tiles adds up, or a part of a wide layer's.
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
    const bool wide_layer;
    const Conv conv;
    const int64_t c, k;
    const bool inputs, weights, pairs;  // whether their gradients are wanted; whether that of the weights takes pairs of pixels
    const WeightGradient<E> wgrad;
    const Tiling tiling;
    const ZPlanes<S, E> z;
    const DyPlanes<S, E> dy;
    const int64_t row_pairs, z_pairs_row, dy_pairs_row;  // pixels, elements
    bool streams;
    Arena shared;
    A* identity;
    PhaseConvs<E> phases;
    size_t partial_bytes, thread_bytes, partials_at;
    Slices slices;
    int64_t partials;
    E *shared_z, *shared_dy, *shared_z_pairs, *shared_dy_pairs;
    A* shared_dweight;

    Bwd(const BnReluConv2dBwd& a)
        : args(a),
          wide_layer(is_wide(a.conv)),
          conv(wide_layer ? a.conv : flattened(a.conv)),
          c(conv.c / conv.groups),
          k(conv.k / conv.groups),
          inputs(a.emit != Emit::none),
          weights(a.dweight),
          pairs(weights && PAIR<E> == 2),
          wgrad(conv, c, k),
          tiling(cut()),
          z(conv, tiling),
          dy(conv, tiling, inputs),
          row_pairs(pairs ? 2 * ceil_div(tiling.columns, 2) : 0),
          z_pairs_row(row_pairs * conv.w.kernel * padded(c)),
          dy_pairs_row(row_pairs * padded(k)),
          shared{static_cast<char*>(a.workspace.data)},
          identity(shared.take<A>(2 * conv.c)),
          phases(shared, conv, c, k, wide_layer),
          partial_bytes(bytes_of([&](Arena& arena) { partial(arena); })),
          slices(shared, tiling.count(), partial_bytes, a.threads),
          partials(wide_layer ? a.threads : slices.count) {
        partials_at = shared.used;
        shared.used += partial_bytes * partials;
        const int64_t together = wide_layer ? tiling.each : 0;
        shared_z = shared.take<E>(together * z_elements());
        shared_dy = shared.take<E>(together * dy.image);
        shared_z_pairs = shared.take<E>(together * z.h.span.count * z_pairs_row);
        shared_dy_pairs = shared.take<E>(together * tiling.rows * dy_pairs_row);
        shared_dweight = together && weights && tiling.count() > 1 ? shared.take<A>(wgrad.row_depth * wgrad.pitch) : nullptr;
        thread_bytes = bytes_of([&](Arena& arena) { scratch(arena); });
    }

    size_t bytes() const { return shared.used + thread_bytes * args.threads; }

    Tiling cut() const {
        if (!wide_layer) return tiling_of(conv, (plane_pitch(c) + plane_pitch(k)) * sizeof(E), wgrad.row_depth * wgrad.pitch * sizeof(E), args.threads);
        return wide_tiling_of(conv, [&](const Tiling& t) {
            const ZPlanes<S, E> z_planes(conv, t);
            const int64_t of_z = weights ? z_planes.image : 0, of_pairs = pairs ? 2 * ceil_div(t.columns, 2) : 0;
            const int64_t joined = of_pairs * (z_planes.h.span.count * conv.w.kernel * padded(c) + t.rows * padded(k));
            return (of_z + DyPlanes<S, E>(conv, t, inputs).image + joined) * int64_t(sizeof(E));
        });
    }

    int64_t z_elements() const { return weights ? z.image : 0; }

    // Input pixels of one phase in a tile, at most.
    int64_t most_inputs() const {
        const Tile first = tiling[0], last = tiling[tiling.count() - 1];
        const int64_t rows = larger(inputs_owned(conv.h, first.rows).count, inputs_owned(conv.h, last.rows).count);
        const int64_t columns = larger(inputs_owned(conv.w, first.columns).count, inputs_owned(conv.w, last.columns).count);
        return tiling.each * larger<int64_t>(1, ceil_div(rows, conv.h.stride) * ceil_div(columns, conv.w.stride));
    }

    Scratch<S, E> scratch(Arena& arena) const {
        Scratch<S, E> own{shared_z, shared_dy, shared_z_pairs, shared_dy_pairs, nullptr, nullptr, nullptr, nullptr};
        if (wide_layer) {
            own.packed = arena.take<E>(inputs ? padded(k) * PANEL<A> : 0);
            own.tile = arena.take<A>(inputs ? round_up(most_inputs(), ROWS) * PANEL<A> : 0);
            own.dweight_rows = arena.take<A>(weights && tiling.count() == 1 ? wgrad.rows_at_once() * wgrad.pitch : 0);
        } else {
            own.z = arena.take<E>(z_elements());
            own.dy = arena.take<E>(dy.image);
            own.z_pairs = arena.take<E>(z.h.span.count * z_pairs_row);
            own.dy_pairs = arena.take<E>(tiling.rows * dy_pairs_row);
            own.tile = arena.take<A>(CHUNK * PANEL<A>);
        }
        own.pixels = arena.take<Pixels>(phases.count);
        for (int64_t i = 0; inputs && i < phases.count; ++i) {
            const Pixels table(arena, most_inputs());
            if (arena.data) own.pixels[i] = table;
        }
        return own;
    }
    Scratch<S, E> scratch(int thread) const {
        Arena arena{shared.data, shared.used + thread * thread_bytes};
        return scratch(arena);
    }
    Partial<A> partial(Arena& arena) const { return {arena, weights && !wide_layer ? wgrad.row_depth * wgrad.pitch : 0, c, k}; }
    Partial<A> partial(int64_t slice) const {
        Arena arena{shared.data, partials_at + slice * partial_bytes};
        return partial(arena);
    }
    Partial<A> cleared(int64_t slice) const {
        Partial<A> sums = partial(slice);
        sums.sums.reset();
        clear(sums.dbias, k);
        return sums;
    }

    void prepare() {
        streams = inputs && conv.groups == 1 && streamed<S>(args.out, conv.n * conv.h.in * conv.w.in, c);
        if (inputs) {
            // Blocks of neighbours must not run across rows of x either.
            const bool same = conv.w.stride == 1 && conv.w.in == conv.w.out && tiling.width % tiling.columns == 0;
            phases.prepare(conv, dy, c, k, same ? tiling.columns : 0);
        }
    }

    // One group, all threads.
    void run(int64_t group) {
        const Norm<A> norm = norm_of(args.bn, args.bn_pitch, conv.c, args.relu, identity).from(group * c);
        const S* weight = static_cast<const S*>(args.weight) + group * k * conv.weight_strides[0];
        S* dweight = weights ? static_cast<S*>(args.dweight) + group * k * conv.weight_strides[0] : nullptr;
        slices.reset();
#pragma omp parallel num_threads(args.threads)
        {
            const int t = omp_get_thread_num(), team = omp_get_num_threads();
            Scratch<S, E> own = scratch(t);
            if (wide_layer)
                together(weight, dweight, group, norm, own, t, team);
            else
                tile_by_tile(weight, group, norm, own, t, team);
            if (streams) stream_fence();
#pragma omp barrier
            if (weights && !wide_layer)
                wgrad.write(dweight, conv.weight_strides, conv, partial(0).dweight, slices.count, partial_bytes / sizeof(A), {wgrad.rows, t, team}, 0);
            if (t == 0) finish_sums(group);
        }
    }

    void tile_by_tile(const S* weight, int64_t group, const Norm<A>& norm, Scratch<S, E>& own, int t, int team) {
        for (int64_t i = 0; inputs && i < phases.count; ++i) {
            const PhaseConv<E>& phase = phases.all[i];
            pack(phase.weights, weight, {c, conv.weight_strides[1]}, {k, conv.weight_strides[0]}, phase.taps, phase.count, t, team);
        }
#pragma omp barrier
        if (!inputs && !weights && !args.dbias && !args.dy.out) return;
        slices.work(
            t, [&](int64_t slice) { return cleared(slice); },
            [&](Partial<A>& sums, int64_t i, int64_t next) {
                const Tile tile = tiling[i];
                dy.fill(own.dy, args.dy, group, tile, 0, 1);
                if (args.dbias) add_bias(own, tile, sums);
                Prefetch prefetch;
                if (next >= 0) fetch(prefetch, tiling[next]);
                if (inputs) input_gradient(tile, group, norm, own, sums, prefetch);
                if (weights) {
                    z.fill(own.z, args.x, group, norm, tile, 0, 1);
                    if (pairs) pair(tile, own, 0, 1);
                    add_weights(own, sums.dweight, {wgrad.row_depth, 0, 1}, sums.fresh, tile, prefetch);
                    sums.fresh = false;
                }
            },
            [](Partial<A>&) {});
    }

    // A wide layer's tiles, one after the other.
    void together(const S* weight, S* dweight, int64_t group, const Norm<A>& norm, Scratch<S, E>& own, int t, int team) const {
        for (int64_t part = t; part < partials; part += team) cleared(part);
        Prefetch nothing;
        for (int64_t i = 0; i < tiling.count(); ++i) {
            const Tile tile = tiling[i];
            dy.fill(own.dy, args.dy, group, tile, t, team);
            if (weights) z.fill(own.z, args.x, group, norm, tile, t, team);
#pragma omp barrier
            if (pairs) {
                pair(tile, own, t, team);
#pragma omp barrier
            }
            if (args.dbias && t == 0) {
                Partial<A> sums = partial(0);
                add_bias(own, tile, sums);
            }
            for (int64_t p = 0; inputs && p < phases.count; ++p) {
                const PhaseConv<E>& phase = phases.all[p];
                Pixels& pixels = own.pixels[p];
                if (!reached(tile, phase, pixels)) continue;
                const WideGemm<S, E> gemm{weight,           {c, conv.weight_strides[1]}, {k, conv.weight_strides[0]}, phase.taps, phase.count, phase.segments,
                                          phase.segment_count, own.packed,                  own.tile};
                gemm.run(own.dy, pixels, {pixels.count, partials}, t, team, [&]<int NV>(int64_t lane, int64_t part, int64_t at, int64_t n, const A* values) {
                    Sums<A> sums = partial(part).sums;
                    leave<S, NV>(leaving(tile, phase, group, norm, sums), values, pixels.memory + at, n, lane);
                });
            }
            const Share rows = wgrad.rows_of(t, team);
            for (int64_t row = rows.begin, end; weights && row < rows.end; row = end) {
                end = smaller(rows.end, row + wgrad.rows_at_once());
                A* sums = tiling.count() > 1 ? shared_dweight + row * wgrad.pitch : own.dweight_rows;
                add_weights(own, sums, {row, end}, i == 0, tile, nothing);
                if (i + 1 == tiling.count()) wgrad.write(dweight, conv.weight_strides, conv, sums, 1, 0, {row, end}, row);
            }
#pragma omp barrier
        }
    }

    // The inputs of a phase that a tile owns: whether there are any.
    bool reached(const Tile& tile, const PhaseConv<E>& phase, Pixels& pixels) const {
        const int64_t down = ceil_div(inputs_owned(conv.h, tile.rows).count - phase.row, conv.h.stride);
        const int64_t right = ceil_div(inputs_owned(conv.w, tile.columns).count - phase.column, conv.w.stride);
        if (down <= 0 || right <= 0) return false;
        pixels.set(tile.images.count, down, right, {dy.image, dy.plane.row, dy.plane.pitch},
                   {conv.h.in * conv.w.in, conv.h.stride * conv.w.in, conv.w.stride});
        return true;
    }

    Leaving<S> leaving(const Tile& tile, const PhaseConv<E>& phase, int64_t group, const Norm<A>& norm, Sums<A>& sums) const {
        const int64_t row = inputs_owned(conv.h, tile.rows).first + phase.row, column = inputs_owned(conv.w, tile.columns).first + phase.column;
        const int64_t ch = group * c, first = ((tile.images.first * conv.h.in + row) * conv.w.in + column) * conv.c + ch;
        const A* v = static_cast<const A*>(args.coeffs);
        auto at = [&](const void* p) { return p ? static_cast<const S*>(p) + first : nullptr; };
        return {args.emit, at(args.x), at(args.add_dz), at(args.residual_grad), const_cast<S*>(at(args.out)), conv.c, c, streams, norm,
                v + ch, v + conv.c + ch, v + 2 * conv.c + ch, v + 3 * conv.c + ch, &sums};
    }

    void input_gradient(const Tile& tile, int64_t group, const Norm<A>& norm, Scratch<S, E>& own, Partial<A>& sums, Prefetch& prefetch) const {
        for (int64_t i = 0; i < phases.count; ++i) {
            const PhaseConv<E>& phase = phases.all[i];
            Pixels& pixels = own.pixels[i];
            if (!reached(tile, phase, pixels)) continue;
            const Leaving<S> to = leaving(tile, phase, group, norm, sums.sums);
            const Gemm<E> gemm{own.dy, phase.weights, phase.segments, phase.segment_count, padded(k) * phase.count, phase.three_taps};
            // The phases have about the same number of pixels; the first with taps fetches for all.
            const int64_t later = weights ? wgrad.advances(tile.rows.count, ceil_div(tile.columns.count, PAIR<E>)) : 0;
            prefetch.spread(gemm.advances(c, pixels.count) + later);
            gemm.run(c, pixels, own.tile, prefetch, [&]<int NV>(int64_t lane, int64_t at, int64_t n, const A* values) {
                leave<S, NV>(to, values, pixels.memory + at, n, lane);
            });
        }
    }

    // A tile's share of rows `part` of dweight.
    void add_weights(Scratch<S, E>& own, A* dweight, Share part, bool fresh, const Tile& tile, Prefetch& prefetch) const {
        const int64_t images = tile.images.count, rows = tile.rows.count, pixels = tile.columns.count;
        if constexpr (PAIR<E> == 2) {
            const int64_t tap = 2 * padded(c), z_pitch = conv.w.kernel * tap;
            wgrad.add(dweight, part, fresh, {own.z_pairs, z_pitch, conv.h.stride * z_pairs_row, z.h.span.count * z_pairs_row},
                      {own.dy_pairs, 2 * padded(k), dy_pairs_row, tiling.rows * dy_pairs_row}, true, conv, {images, rows, ceil_div(pixels, 2)}, prefetch,
                      [&](int64_t r, int64_t s) { return r * conv.h.dilation * z_pairs_row + s * tap; });
        } else {
            const bool dense = conv.w.stride == 1 && conv.w.dilation == 1 && z.plane.pitch == wgrad.lane_depth;
            wgrad.add(dweight, part, fresh, {own.z, z.plane.pitch, conv.h.stride * z.plane.row, z.image},
                      {dy.own(own.dy, tile), dy.plane.pitch, dy.plane.row, dy.image}, dense, conv, {images, rows, pixels}, prefetch,
                      [&](int64_t r, int64_t s) { return z.tap(r, s); });
        }
    }

    // Pairs of a tile's pixels side by side, thread t's share.
    void pair([[maybe_unused]] const Tile& tile, [[maybe_unused]] Scratch<S, E>& own, [[maybe_unused]] int t, [[maybe_unused]] int team) const {
#if defined(__AVX512BF16__)
        if constexpr (PAIR<E> == 2) {
            const int64_t images = tile.images.count, rows = tile.rows.count, pixels = tile.columns.count;
            const int64_t tap = 2 * padded(c), read = inputs_of(conv.h, tile.rows).count;
            const Share z_share(images * read, t, team), dy_share(images * rows, t, team);
            for (int64_t i = z_share.begin; i < z_share.end; ++i) {
                const int64_t image = i / read, row = i % read;
                for (int64_t s = 0; z.h.needed(row % conv.h.stride) && s < conv.w.kernel; ++s)
                    pair_rows(own.z + image * z.image + row * z.plane.row + z.tap(0, s), z.plane.pitch, pixels, padded(c),
                              own.z_pairs + (image * z.h.span.count + row) * z_pairs_row + s * tap, conv.w.kernel * tap);
            }
            const E* from = dy.own(own.dy, tile);
            for (int64_t i = dy_share.begin; i < dy_share.end; ++i)
                pair_rows(from + i / rows * dy.image + i % rows * dy.plane.row, dy.plane.pitch, pixels, padded(k),
                          own.dy_pairs + (i / rows * tiling.rows + i % rows) * dy_pairs_row, 2 * padded(k));
        }
#endif
    }

    void add_bias(const Scratch<S, E>& own, const Tile& tile, Partial<A>& sums) const {
        const E* first = dy.own(own.dy, tile);
        for (int64_t ch = 0; ch < k; ++ch) {
            double sum = 0;
            for (int64_t n = 0; n < tile.images.count; ++n)
                for (int64_t i = 0; i < tile.rows.count; ++i)
                    for (int64_t j = 0; j < tile.columns.count; ++j) sum += double(widened(first[n * dy.image + i * dy.plane.row + j * dy.plane.pitch + ch]));
            sums.dbias[ch] += sum;
        }
    }

    void finish_sums(int64_t group) const {
        if (!args.sums && !args.dbias) return;
        Partial<A> all = partial(0);
        for (int64_t slice = 1; slice < partials; ++slice) {
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
        const int64_t y = (next.images.first * conv.h.out + next.rows.first) * conv.w.out + next.columns.first;
        const int64_t x = (next.images.first * conv.h.in + rows.first) * conv.w.in + columns.first;
        auto add = [&](const void* p, int64_t pixel, int64_t pixels, int64_t channels) {
            if (p) prefetch.add(static_cast<const S*>(p) + pixel * channels, pixels * channels * sizeof(S));
        };
        const int64_t y_pixels = next.pixels(), x_pixels = rows.count * columns.count;
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
