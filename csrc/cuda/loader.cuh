// From global memory to where a tile is computed.
#pragma once
#include "conv_shape.cuh"
#include "ptx.cuh"

namespace fused_preact::cuda {

// Chunks of a slab of an activation's channels, on their way into registers: the prologue works there.
template <class T, class S>
struct PixelLoader {
    using Thread = Walk<S::THREADS, S::PIXELS, S::In::CHUNKS>;
    Thread thread;
    const T* x;
    int64_t pixels;
    int channels;
    uint4 chunks[Thread::COUNT];

    __device__ PixelLoader(const void* x, int64_t pixels, int channels) : x(static_cast<const T*>(x)), pixels(pixels), channels(channels) {}

    // Whether the activation has the thread's channels.
    __device__ bool inside(int slab) const { return slab * S::SLAB + 8 * thread.chunk < channels; }

    // Pixels beyond the last give zeros.
    __device__ void start(int64_t tile, int slab) {
        if (!inside(slab)) return;
        const int64_t first = tile * S::PIXELS;
        const T* from = x + (first + thread.row) * channels + slab * S::SLAB + 8 * thread.chunk;
        const int step = Thread::STEP * channels;
        if (first + S::PIXELS <= pixels) {
#pragma unroll
            for (int i = 0; i < Thread::COUNT; ++i) chunks[i] = *reinterpret_cast<const uint4*>(from + i * step);
        } else {
            const int left = int(pixels - first) - thread.row;
#pragma unroll
            for (int i = 0; i < Thread::COUNT; ++i) chunks[i] = i * Thread::STEP < left ? *reinterpret_cast<const uint4*>(from + i * step) : uint4{};
        }
    }
};

// A slab of the weight's input channels, [output channel][input channel], for the output channels from `first` on; zeros beyond the last of both.
template <class T, class S>
__device__ inline void copy_weights(char* to, const void* weight, int first, int k, int slab, int c) {
    using Thread = Walk<S::THREADS, S::OUT, S::In::CHUNKS>;
    const Thread thread;
    const int channel = slab * S::SLAB + 8 * thread.chunk;
    const T* const from = static_cast<const T*>(weight);
#pragma unroll
    for (int i = 0; i < Thread::COUNT; ++i) {
        const int row = thread.row + i * Thread::STEP;
        if (row >= S::OUT) break;
        const bool inside = channel < c && first + row < k;
        copy_async(to + S::In::at(thread.row, thread.chunk) + i * Thread::STEP * S::In::BYTES, from + (inside ? int64_t(first + row) * c + channel : 0), inside);
    }
}

// A tile of an activation like y, for the output channels from `first` on; zeros outside.
template <class T, class S>
__device__ inline void copy_output_like(char* to, const void* from, int64_t tile, int64_t pixels, int first, int k) {
    const Walk<S::THREADS, S::PIXELS, S::Out::CHUNKS> thread;
    const int channel = first + 8 * thread.chunk;
    const int64_t pixel = tile * S::PIXELS + thread.row;
    const T* const base = static_cast<const T*>(from);
    const int left = channel < k ? int(min(pixels - pixel, int64_t(S::PIXELS))) : 0;
    const T* own = base + pixel * k + channel;
#pragma unroll
    for (int i = 0; i < thread.COUNT; ++i) {
        const bool inside = i * thread.STEP < left;
        copy_async(to + S::Out::at(thread.row, thread.chunk) + i * thread.STEP * S::Out::BYTES, inside ? own : base, inside);
        own += thread.STEP * k;
    }
}

}  // namespace fused_preact::cuda
