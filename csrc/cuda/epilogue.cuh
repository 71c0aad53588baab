// From accumulators to y: residual and bias added before the one rounding, and through shared memory, so that lines are written whole.
#pragma once
#include "fragments.cuh"

namespace fused_preact::cuda {

// Accumulators start at the bias of their channels from `first` on, or 0.
template <class S>
__device__ inline void start_sums(Accumulators<S>& sums, const float* bias, int first, int k) {
    const WarpTile<S> warp;
#pragma unroll
    for (int j = 0; j < S::COLUMNS; ++j) {
        const int channel = first + warp.channel + 8 * j + 2 * (warp.lane % 4);
        const float2 own = bias && channel < k ? *reinterpret_cast<const float2*>(bias + channel) : float2{};
#pragma unroll
        for (int i = 0; i < S::ROWS; ++i) sums[i][j][0] = sums[i][j][2] = own.x, sums[i][j][1] = sums[i][j][3] = own.y;
    }
}

// `staged` has the residual, if there is one, and then y.
template <bool RESIDUAL, class T, class S>
__device__ inline void stage_output(char* staged, const Accumulators<S>& sums) {
    // That share a chunk: each has two channels of 8.
    constexpr int LANES = PER_CHUNK<T> / 2;
    const WarpTile<S> warp;
#pragma unroll
    for (int j = 0; j < S::COLUMNS; ++j) {
        const int chunk = warp.channel / PER_CHUNK<T> + j * (8 / PER_CHUNK<T>) + (LANES < 4 ? warp.lane % 4 / LANES : 0);
        char* const column = staged + S::Out::at(warp.pixel + warp.lane / 4, chunk) + warp.lane % LANES * (16 / LANES);
#pragma unroll
        for (int i = 0; i < 2 * S::ROWS; ++i) {
            Pair<T>* const pair = reinterpret_cast<Pair<T>*>(column + i * 8 * S::Out::BYTES);
            float2 value{sums[i / 2][j][i % 2 * 2], sums[i / 2][j][i % 2 * 2 + 1]};
            if (RESIDUAL) {
                const float2 residual = detail::wide(*pair, T{});
                value.x += residual.x, value.y += residual.y;
            }
            *pair = detail::narrow<false>(value, T{});
        }
    }
}

// body(offset of the thread's i-th chunk in `staged`, i) for those chunks of the tile that the outputs have.
template <class S, class Body>
__device__ inline void each_output(const Outputs<S>& outputs, bool inside, Body&& body) {
    using Thread = Walk<S::THREADS, S::PIXELS, S::Out::CHUNKS>;
    if (!inside) return;
    const Thread thread;
    const int at = S::Out::at(thread.row, thread.chunk);
    if (outputs.all()) {
#pragma unroll
        for (int i = 0; i < Thread::COUNT; ++i) body(at + i * Thread::STEP * S::Out::BYTES, i);
    } else {
#pragma unroll 1
        for (int i = 0; i < Thread::COUNT; ++i)
            if (outputs.has(thread.row + i * Thread::STEP)) body(at + i * Thread::STEP * S::Out::BYTES, i);
    }
}

template <class T, class S>
__device__ inline void store_output(void* y, const char* staged, const Outputs<S>& outputs, int first, int k) {
    using Thread = Walk<S::THREADS, S::PIXELS, S::Out::CHUNKS>;
    const Thread thread;
    const int channel = first + PER_CHUNK<T> * thread.chunk;
    T* const to = static_cast<T*>(y) + outputs.at(thread, channel);
    const int step = outputs.template step<Thread>();
    each_output<S>(outputs, channel < k, [&](int at, int i) { *reinterpret_cast<uint4*>(to + int64_t(i) * step) = *reinterpret_cast<const uint4*>(staged + at); });
}

}  // namespace fused_preact::cuda
