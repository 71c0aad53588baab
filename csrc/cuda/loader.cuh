// From global memory to where a tile is computed.
#pragma once
#include "conv_shape.cuh"
#include "ptx.cuh"

namespace fused_preact::cuda {

// Chunks of a slab of an activation's channels, on their way into registers: the prologue works there. Raw: what is read for a chunk.
template <class T, class S, class Raw = uint4>
struct PixelLoader {
    using Thread = Walk<S::THREADS, S::PIXELS, S::In::CHUNKS>;
    Thread thread;
    const T* x;
    int64_t pixels;
    int channels;
    Raw chunks[Thread::COUNT];

    __device__ PixelLoader(const void* x, int64_t pixels, int channels) : x(static_cast<const T*>(x)), pixels(pixels), channels(channels) {}

    // The thread's first, and whether the activation has it.
    __device__ int channel(int slab) const { return slab * S::SLAB + PER_CHUNK<T> * thread.chunk; }
    __device__ bool inside(int slab) const { return channel(slab) < channels; }

    // Pixels beyond the last give zeros.
    __device__ void start(int64_t tile, int slab) {
        start(tile, slab, [](const T* from) { return *reinterpret_cast<const uint4*>(from); });
    }
    template <class Read>
    __device__ void start(int64_t tile, int slab, Read&& read) {
        if (!inside(slab)) return;
        const int64_t first = tile * S::PIXELS;
        const T* from = x + (first + thread.row) * channels + channel(slab);
        const int step = Thread::STEP * channels;
        if (first + S::PIXELS <= pixels) {
#pragma unroll
            for (int i = 0; i < Thread::COUNT; ++i) chunks[i] = read(from + i * step);
        } else {
            const int left = int(pixels - first) - thread.row;
#pragma unroll
            for (int i = 0; i < Thread::COUNT; ++i) chunks[i] = i * Thread::STEP < left ? read(from + i * step) : Raw{};
        }
    }
};

// store(offset in the tile, chunk as read or zero, whether it is there) for the thread's chunks of a tile: its row and every STEP-th below, of which
// has(row) tells; all: they are all there. `from`: its first; TOGETHER loads are on their way at once.
template <class Thread, int TOGETHER, class T, class Source, class Has, class Store>
__device__ inline void each_chunk(const Thread& thread, const Source& source, const T* from, int step, bool all, Has&& has, Store&& store) {
    static_assert(Thread::COUNT % TOGETHER == 0);
    if (all) {
#pragma unroll
        for (int group = 0; group < Thread::COUNT; group += TOGETHER) {
            typename Source::Raw raw[TOGETHER];
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i) raw[i] = source.read(from + (group + i) * step);
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i) store((group + i) * Thread::STEP, raw[i], true);
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < Thread::COUNT; ++i) {
            if (has(thread.row + i * Thread::STEP))
                store(i * Thread::STEP, source.read(from + i * step), true);
            else
                store(i * Thread::STEP, {}, false);
        }
    }
}

// body(offset in shared memory, i) for the thread's chunks of a weight there, [tap][row][column] of all its `taps`: the i-th row that it has in
// memory, where rows are [row][tap].
template <int THREADS, int ROWS, class Layout, class Body>
__device__ inline void each_weight(int taps, Body&& body) {
    const Walk<THREADS, ROWS, Layout::CHUNKS> thread;
    const int first = Layout::at(thread.row, thread.chunk), count = (ROWS * taps + thread.STEP - 1) / thread.STEP;
    for (int n = 0; n < count; ++n) {
        const int i = thread.row + n * thread.STEP, row = i / taps, tap = i - row * taps;
        if (i >= ROWS * taps) break;
        body(taps == 1 ? first + n * thread.STEP * Layout::BYTES : tap * tap_bytes<Layout>(ROWS) + Layout::at(row, thread.chunk), i);
    }
}

// Rows of a weight whose columns are chunks side by side: ROWS rows from `first_row` on, columns from `first_column` on; zeros beyond the last of
// both.
template <class T, int THREADS, int ROWS, class Layout>
__device__ inline void copy_weights(char* to, const void* weight, int taps, int first_row, int rows, int first_column, int columns) {
    const Walk<THREADS, ROWS, Layout::CHUNKS> thread;
    const int column = first_column + PER_CHUNK<T> * thread.chunk;
    const T* const from = static_cast<const T*>(weight);
    const T* own = from + (int64_t(first_row) * taps + thread.row) * columns + column;
    const int left = column < columns ? (min(rows - first_row, ROWS)) * taps : 0;
    each_weight<THREADS, ROWS, Layout>(taps, [&](int at, int i) {
        copy_async(to + at, i < left ? own : from, i < left);
        own += thread.STEP * columns;
    });
}

// What the thread copied, once it is there, as the tensor cores take it: once for all warps and tiles that read it.
template <class T, int THREADS, int ROWS, class Layout>
__device__ inline void round_weights(char* weights, int taps) {
    if constexpr (sizeof(T) == 4)
        each_weight<THREADS, ROWS, Layout>(taps, [&](int at, int) {
            uint4* const chunk = reinterpret_cast<uint4*>(weights + at);
            *chunk = operand(*chunk, T{});
        });
}

// A tile of an activation like y, for the output channels from `first` on; zeros outside.
template <class T, class S>
__device__ inline void copy_output_like(char* to, const void* from, const Outputs<S>& outputs, int first, int k) {
    const Walk<S::THREADS, S::PIXELS, S::Out::CHUNKS> thread;
    const int channel = first + PER_CHUNK<T> * thread.chunk;
    const T* const base = static_cast<const T*>(from);
    const T* own = base + outputs.at(thread, channel);
    const int step = outputs.template step<decltype(thread)>();
    to += S::Out::at(thread.row, thread.chunk);
    if (outputs.all() && channel < k) {
#pragma unroll
        for (int i = 0; i < thread.COUNT; ++i, own += step) copy_async(to + i * thread.STEP * S::Out::BYTES, own);
    } else {
#pragma unroll
        for (int i = 0; i < thread.COUNT; ++i, own += step) {
            const bool inside = channel < k && outputs.has(thread.row + i * thread.STEP);
            copy_async(to + i * thread.STEP * S::Out::BYTES, inside ? own : base, inside);
        }
    }
}

}  // namespace fused_preact::cuda
