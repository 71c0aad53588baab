// Sums of g and g*(x - mean) of a block's tiles, for sum g*xhat.
#pragma once
#include "column_sums.cuh"
#include "epilogue.cuh"
#include "prologue.cuh"
#include "records.h"

namespace fused_preact::cuda {

// A thread has the same chunk of x's channels in all tiles.
template <class T, class S>
struct ThreadOfInput {
    const BnReluConv2dBwd& args;
    int first, channel;  // of the block, of the thread
    bool inside;         // whether x has the thread's channels

    __device__ ThreadOfInput(const BnReluConv2dBwd& args, int first)
        : args(args), first(first), channel(first + threadIdx.x % S::Out::CHUNKS * PER_CHUNK<T>), inside(channel < args.conv.c) {}
};

// Of 16 bits: on the tensor cores, from g and x of a tile in shared memory.
template <class T, class S>
struct GradSums : ThreadOfInput<T, S> {
    using ThreadOfInput<T, S>::ThreadOfInput, ThreadOfInput<T, S>::args, ThreadOfInput<T, S>::first;
    // Sums are about a value near the mean, where that is large: sums about 0 would lose it.
    bool shifted = false;
    ColumnSums<T, S> sums;

    // All threads must come.
    __device__ void start_sums() {
        const int own = first + threadIdx.x;
        shifted = __syncthreads_or(threadIdx.x < S::OUT && own < args.conv.c && shift_of(own) != 0);
    }

    __device__ void add_chunk(uint4* staged, uint4 g, uint4, const ThreadNorm<T>&) { *staged = g; }
    // What a tile does not have counts in no sum.
    __device__ void skip_chunk(uint4* staged) { *staged = {}; }

    // The thread's chunks of x, less what sums are about.
    __device__ void shift(char* x) const {
        if (!this->inside) return;
        const Walk<S::THREADS, S::PIXELS, S::Out::CHUNKS> thread;
#pragma unroll 1
        for (int i = 0; i < thread.COUNT; ++i) {
            uint4* const chunk = reinterpret_cast<uint4*>(x + S::Out::at(thread.row, thread.chunk) + i * thread.STEP * S::Out::BYTES);
            Values<PER_CHUNK<T>> value = unpacked<T>(*chunk);
#pragma unroll
            for (int j = 0; j < PER_CHUNK<T>; ++j) value[j] -= shift_of(this->channel + j);
            *chunk = packed<false, T>(value);
        }
    }
    // All threads must come.
    __device__ void add_tile(const char* x, const char* g) {
        __syncthreads();
        sums.add(x, g);
    }

    // Sum g and sum g*(x - shift) of channel first + threadIdx.x. memory: SUMS_BYTES that nobody uses. All threads must come.
    __device__ float2 total(float* memory) const {
        sums.store(memory);
        __syncthreads();
        return of_column<S>(memory, S::SHARES);
    }
    // sum g*(x - mean) = sum g*(x - shift) - (mean - shift)*sum g
    __device__ float centred(float2 total, int channel) const { return total.y - (args.bn[channel] - shift_of(channel)) * total.x; }

  private:
    // The mean as T has it, if it is more than 8 deviations. Differences of x from it are exact, as long as they are small beside it.
    __device__ float shift_of(int channel) const {
        const float mean = args.bn[channel];
        return fabsf(mean) * args.bn[args.bn_pitch + channel] > 8 ? widened(T(mean)) : 0;
    }
};

// Of float32, whose products are not exact as tf32: in registers, of the thread's channels.
template <class S>
struct GradSums<float, S> : ThreadOfInput<float, S> {
    using ThreadOfInput<float, S>::ThreadOfInput;
    static constexpr bool shifted = false;
    Values<4> g{}, products{};

    __device__ void start_sums() {}
    __device__ void add_chunk(uint4*, uint4 chunk, uint4 x, const ThreadNorm<float>& norm) {
        const Values<4> own = unpacked<float>(chunk), in = unpacked<float>(x);
        g.add(own);
#pragma unroll
        for (int i = 0; i < 4; ++i) products[i] = fmaf(own[i], in[i] - norm.mean[i], products[i]);
    }
    __device__ void skip_chunk(uint4*) {}
    static __device__ void shift(char*) {}
    __device__ void add_tile(const char*, const char*) {}
    __device__ float2 total(float* memory) {
        store_warp_sums<S>(memory, g, products);
        __syncthreads();
        return of_column<S>(memory, S::WARPS);
    }
    __device__ float centred(float2 total, int) const { return total.y; }
};

}  // namespace fused_preact::cuda
