// Parts of dweight = conv_wgrad(dy, relu(bn(x))) for convolutions whose outputs read a window of pixels:
// dweight[k][tap][c] = sum over outputs p of dy[p][k] * z[p*stride + tap][c].
#include "gradient.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "prologue.cuh"
#include "wgrad.cuh"
#include "window.cuh"

namespace fused_preact::cuda {
namespace {

// The thread's chunks of a tile of dy, of channels from `first` on, as of a window; zeros outside, where a deferred one would be c - b*mean.
template <class T, class S, bool DEFERRED>
struct GradientLoader {
    using Source = Gradient<T, DEFERRED>;
    using Thread = Walk<S::THREADS, S::PIXELS, S::Out::CHUNKS>;
    // A thread's chunks are whole rows of the tile apart.
    static constexpr int ROWS_APART = Thread::STEP / S::WIDTH;
    static_assert(Thread::STEP % S::WIDTH == 0);
    const Conv& conv;
    Thread thread;
    int channel, row, column;
    Source source;
    const T* own;  // of the first tile
    typename Source::Raw raw[Thread::COUNT];
    bool inside[Thread::COUNT];

    __device__ GradientLoader(const BnReluConv2dBwd& args, int first)
        : conv(args.conv), channel(first + PER_CHUNK<T> * thread.chunk), row(thread.row / S::WIDTH), column(thread.row % S::WIDTH),
          source(args.dy, args.dy_x, args.dy_coeffs, conv.k, channel < conv.k ? channel : 0),
          own(static_cast<const T*>(args.dy) + (row * conv.x.out + column) * conv.k + channel) {}

    // exists: whether there is such a tile.
    __device__ void start(const TileAt& at, bool exists) {
        const Axis &down = conv.y, &across = conv.x;
        const T* from = own + (int64_t(at.image) * (down.out * across.out) + (at.y * across.out + at.x)) * conv.k;
        const int rows = exists && channel < conv.k && column < across.out - at.x ? down.out - at.y - row : 0, step = ROWS_APART * across.out * conv.k;
#pragma unroll
        for (int i = 0; i < Thread::COUNT; ++i, from += step) {
            inside[i] = i * ROWS_APART < rows;
            if (inside[i])
                raw[i] = source.read(from);
            else if (!DEFERRED)
                raw[i] = typename Source::Raw{};
        }
    }
    __device__ void finish(char* staged) const {
        char* const to = staged + S::Out::at(thread.row, thread.chunk);
#pragma unroll
        for (int i = 0; i < Thread::COUNT; ++i)
            *reinterpret_cast<uint4*>(to + i * Thread::STEP * S::Out::BYTES) = !DEFERRED || inside[i] ? source.chunk(raw[i]) : uint4{};
    }
};

// The group's taps, wherever in the window: each reads its own pixels.
template <class T, class S>
struct AnyTaps {
    using Geometry = AnyWindow<S>;
    Geometry geometry;
    int count, offsets[S::TAPS];

    __device__ AnyTaps(const Geometry& geometry, int first) : geometry(geometry), count(min(geometry.taps() - first, S::TAPS)) {
#pragma unroll
        for (int tap = 0; tap < S::TAPS; ++tap) offsets[tap] = tap < count ? geometry.offset_of(first + tap) : 0;
    }

    __device__ void multiply(WgradSums<S>& sums, const char* dy, const char* window) const {
        constexpr int AT_ONCE = 2 * PER_CHUNK<T>, STEPS = S::PIXELS / AT_ONCE / S::SHARES;
        const WgradWarp<S> warp;
        const LaneOfDy<T> dy_lane(warp.lane);
        const LaneOfZ<T> z_lane(warp.lane);
        const int first = warp.share * STEPS * AT_ONCE, next_rows = geometry.template next_rows<AT_ONCE>();
        const uint32_t z =
            shared_address(window) + S::In::at(geometry.row_of(first + z_lane.pixel), warp.c / PER_CHUNK<T> + z_lane.chunk) + z_lane.byte;
#pragma unroll 1
        for (int step = 0; step < STEPS; ++step) {
            uint32_t a[S::ROWS][4];
#pragma unroll
            for (int i = 0; i < S::ROWS; ++i)
                dy_lane.template load<typename S::Out>(
                    a[i], shared_address(dy) + dy_lane.byte +
                              S::Out::at(first + step * AT_ONCE + dy_lane.pixel, warp.k / PER_CHUNK<T> + i * (16 / PER_CHUNK<T>) + dy_lane.chunk));
#pragma unroll
            for (int tap = 0; tap < S::TAPS; ++tap) {
                if (tap >= count) break;
#pragma unroll
                for (int j = 0; j < S::COLUMNS / 2; ++j) {
                    uint32_t b[4];
                    z_lane.template load<typename S::In>(b, z + step * next_rows + offsets[tap] + j * 16 * int(sizeof(T)));
#pragma unroll
                    for (int i = 0; i < S::ROWS; ++i) {
                        multiply_add(sums[tap][i][2 * j], a[i], b[0], b[1], T{});
                        multiply_add(sums[tap][i][2 * j + 1], a[i], b[2], b[3], T{});
                    }
                }
            }
        }
    }
};

// 3x3 taps, without stride and dilation, over rows of 8 outputs. What is loaded of rows of the window, two of 16 bits and one of float32, serves
// all three rows of taps: with the outputs of the same rows, of those one row above, and of those two rows above, whose dy is still in registers.
template <class T, class S>
struct Taps3x3 {
    using Geometry = Window3x3<S, false>;
    static_assert(S::WIDTH == 8 && S::TAPS == 9 && S::ROWS == 1 && S::COLUMNS == 2 && S::HEIGHT % (2 * S::SHARES) == 0);
    static constexpr int count = S::TAPS;

    __device__ Taps3x3(const Geometry&, int) {}

    __device__ void multiply(WgradSums<S>& sums, const char* dy, const char* window) const {
        constexpr int ROWS = PER_CHUNK<T> / 4, STEPS = S::HEIGHT / ROWS / S::SHARES, LATE = 2 / ROWS;
        const WgradWarp<S> warp;
        const LaneOfDy<T> dy_lane(warp.lane);
        const LaneOfZ<T> z_lane(warp.lane);
        const int row = warp.share * STEPS * ROWS;
        const uint32_t a_at = shared_address(dy) + S::Out::at(row * 8 + dy_lane.pixel, warp.k / PER_CHUNK<T> + dy_lane.chunk) + dy_lane.byte;
        const uint32_t b_at = shared_address(window) +
                              S::In::at((row + z_lane.pixel / 8) * Geometry::WIDTH + z_lane.pixel % 8, warp.c / PER_CHUNK<T> + z_lane.chunk) + z_lane.byte;
        uint32_t between[4]{}, above[4]{};
#pragma unroll
        for (int step = 0; step < STEPS + LATE; ++step) {
            uint32_t own[4]{};
            if (step < STEPS) dy_lane.template load<typename S::Out>(own, a_at + step * ROWS * 8 * S::Out::BYTES);
            if (ROWS == 2) between[0] = above[2], between[1] = above[3], between[2] = own[0], between[3] = own[1];
#pragma unroll
            for (int tap = 0; tap < 3; ++tap) {
                uint32_t b[4];
                z_lane.template load<typename S::In>(b, b_at + (step * ROWS * Geometry::WIDTH + tap) * S::In::BYTES);
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    if (step < STEPS) multiply_add(sums[tap][0][j], own, b[2 * j], b[2 * j + 1], T{});
                    if (step >= LATE - 1 && step <= STEPS) multiply_add(sums[3 + tap][0][j], between, b[2 * j], b[2 * j + 1], T{});
                    if (step >= LATE) multiply_add(sums[6 + tap][0][j], above, b[2 * j], b[2 * j + 1], T{});
                }
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) above[i] = ROWS == 2 ? own[i] : between[i], between[i] = own[i];
        }
    }
};

// Groups of threads take tiles of outputs in turn, for the block's channels of both and its taps. While one tile is multiplied, the next is on its
// way.
template <class T, class S, class Taps, bool DEFERRED>
__global__ void __launch_bounds__(S::THREADS* S::GROUPS, S::RESIDENT)
    bn_relu_conv2d_wgrad_window_kernel(const __grid_constant__ BnReluConv2dBwd args, const __grid_constant__ Window host_window) {
    extern __shared__ uint4 memory[];
    const typename Taps::Geometry geometry{host_window};
    char *const staged = reinterpret_cast<char*>(memory) + threadIdx.y * S::group_bytes(geometry.pixels()), *const window = staged + S::WINDOW_AT;
    const Conv& conv = args.conv;
    const Axis &down = conv.y, &across = conv.x;
    const int tiles = conv.n * TileAt::along(down.out, S::HEIGHT) * TileAt::along(across.out, S::WIDTH);
    const int slabs = TileAt::along(conv.c, S::C), first_tap = blockIdx.z / slabs * S::TAPS, first_k = blockIdx.y * S::K, first_c = blockIdx.z % slabs * S::C;
    // The thread's first of x.
    const int c = first_c + threadIdx.x % S::In::CHUNKS * PER_CHUNK<T>;
    const bool has_x = c < conv.c;
    const Prologue prologue = prologue_of(args.bn, args.relu);
    ThreadNorm<T> norm;
    if (args.bn) norm = ThreadNorm<T>(args.bn + (has_x ? c : 0), args.bn_pitch);
    const Taps taps(geometry, first_tap);

    WindowLoader<T, S, typename Taps::Geometry, uint4> x;
    GradientLoader<T, S, DEFERRED> dy(args, first_k);
    const T* const x_of_thread = static_cast<const T*>(args.x) + c;
    // Where a group finds no tile any more, all is outside.
    auto start = [&](int tile) {
        const TileAt at = TileAt::of<S>(tile, down.out, across.out);
        const bool exists = tile < tiles;
        const Image<T> image{x_of_thread + int64_t(at.image) * (down.in * across.in) * conv.c, exists && has_x ? down.in : 0, across.in, conv.c};
        x.start(geometry, image, at, Activation<T, Prologue::none>(norm));
        dy.start(at, exists);
    };

    WgradSums<S> sums{};
    const int step = gridDim.x * S::GROUPS;
    int first = blockIdx.x * S::GROUPS;
    start(first + threadIdx.y);
    while (first < tiles) {
        with_prologue(prologue, [&](auto p) { x.finish(window, geometry, Activation<T, p()>(norm)); });
        dy.finish(staged);
        __syncthreads();
        first += step;
        if (first < tiles) start(first + threadIdx.y);
        taps.multiply(sums, staged, window);
        __syncthreads();
    }
    add_shares<S>(sums, memory);
    store_part<S>(args.parts + int64_t(blockIdx.x) * conv.k * conv.taps() * conv.c, sums, conv, first_k, first_c, first_tap, taps.count);
}

// Of the shapes of fused_preact/backends/cuda/shapes.py, the one of this tile. body(shape, Taps of T)
template <class T, class Body>
bool with_shape(const BnReluConv2dBwd& args, Body&& body) {
    const WgradTile& tile = args.wgrad;
    auto is = [&](auto shape, auto taps, bool fits) {
        using S = decltype(shape);
        const bool same = fits && tile.pixels == S::PIXELS && tile.k == S::K && tile.c == S::C;
        if (same) body(shape, taps);
        return same;
    };
    auto is_3x3 = [&](auto shape) { return is(shape, Type<Taps3x3<T, decltype(shape)>>{}, args.conv.dense_3x3()); };
    auto is_any = [&](auto shape) { return is(shape, Type<AnyTaps<T, decltype(shape)>>{}, !args.conv.dense_3x3()); };
    if constexpr (sizeof(T) == 4)
        return is_3x3(WindowWgradShape<T, 16, 8, 16, 16, 9, 1, 1, 4>{}) || is_3x3(WindowWgradShape<T, 8, 8, 32, 32, 9, 2, 2, 1>{}) ||
               is_any(WindowWgradShape<T, 8, 8, 32, 32, 9, 2, 2, 1>{}) || is_any(WindowWgradShape<T, 8, 8, 64, 64, 1, 2, 2, 1>{});
    else
        return is_3x3(WindowWgradShape<T, 32, 8, 16, 16, 9, 1, 1, 4>{}) || is_3x3(WindowWgradShape<T, 16, 8, 32, 32, 9, 2, 2, 1>{}) ||
               is_3x3(WindowWgradShape<T, 8, 8, 32, 32, 9, 2, 2, 1>{}) || is_any(WindowWgradShape<T, 8, 8, 32, 32, 9, 2, 2, 1>{}) ||
               is_any(WindowWgradShape<T, 8, 8, 64, 64, 1, 2, 2, 1>{});
}

template <class T, bool DEFERRED>
Status launch(const BnReluConv2dBwd& args, cudaStream_t stream) {
    Status status{"no kernel was compiled for the tile"};
    with_shape<T>(args, [&](auto shape, auto taps) {
        using S = decltype(shape);
        const Window window = window_of(args.conv, S::HEIGHT, S::WIDTH);
        const int groups = (args.conv.taps() + S::TAPS - 1) / S::TAPS;
        const dim3 blocks(args.wgrad.parts, (args.conv.k + S::K - 1) / S::K, (args.conv.c + S::C - 1) / S::C * groups);
        static SharedMemoryLimit limit;
        status = launch_with_memory(bn_relu_conv2d_wgrad_window_kernel<T, S, typename decltype(taps)::type, DEFERRED>, limit, args.target.device, blocks,
                                    dim3(S::THREADS, S::GROUPS), args.wgrad.shared, S::bytes(window.y.extent * window.x.extent), stream, args, window);
    });
    return status;
}

}  // namespace

Status launch_bn_relu_conv2d_wgrad_window(const BnReluConv2dBwd& args) {
    if (!has_window(args.conv)) return {"the convolution has more taps or phases than a window"};
    return on_dtype(args.target, args.dtype, [&](auto t, cudaStream_t stream) {
        using T = decltype(t);
        return args.dy_coeffs ? launch<T, true>(args, stream) : launch<T, false>(args, stream);
    });
}

}  // namespace fused_preact::cuda
