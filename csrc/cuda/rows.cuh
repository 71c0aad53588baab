// How a block goes over an activation: each thread keeps its channels and walks down the pixels, so vectors of channels stay in registers.
#pragma once
#include <type_traits>

#include "chunk.cuh"

namespace fused_preact::cuda {

struct Rows {
    int column, row, rows;  // of the block
    int channel;            // the thread's first
    int64_t begin, end;     // the block's pixels
    bool inside;            // whether the thread has channels

    // N: channels of a thread.
    template <int N>
    static __device__ Rows of(int64_t pixels, int channels, int columns) {
        Rows r;
        r.column = threadIdx.x % columns;
        r.row = threadIdx.x / columns;
        r.rows = blockDim.x / columns;
        r.channel = (blockIdx.x * columns + r.column) * N;
        r.begin = pixels * blockIdx.y / gridDim.y;
        r.end = pixels * (blockIdx.y + 1) / gridDim.y;
        r.inside = r.channel < channels;
        return r;
    }

    // use(offset, what read(offset) gave) for the thread's channels of its pixels but the first `done`; TOGETHER reads are on their way at once.
    template <int TOGETHER, class Read, class Use>
    __device__ void each(int channels, Read&& read, Use&& use, int done = 0) const {
        if (!inside) return;
        const int64_t step = int64_t(rows) * channels;
        int64_t pixel = begin + row + int64_t(done) * rows, at = pixel * channels + channel;
        decltype(read(at)) values[TOGETHER];
        for (; pixel + (TOGETHER - 1) * rows < end; pixel += TOGETHER * rows, at += TOGETHER * step) {
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i) values[i] = read(at + i * step);
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i) use(at + i * step, values[i]);
        }
#pragma unroll
        for (int i = 0; i < TOGETHER - 1; ++i)
            if (pixel + i * rows < end) values[i] = read(at + i * step);
#pragma unroll
        for (int i = 0; i < TOGETHER - 1; ++i)
            if (pixel + i * rows < end) use(at + i * step, values[i]);
    }
};

// A value of a thread in shared memory, in pieces of up to 16 bytes that lie side by side with those of its neighbours.
template <class Value>
struct Slots {
    using Piece = std::conditional_t<sizeof(Value) % sizeof(uint4) == 0, uint4, uint32_t>;
    static constexpr int PIECES = sizeof(Value) / sizeof(Piece);
    static_assert(sizeof(Value) % sizeof(Piece) == 0);
    Piece* memory;
    int count;

    __device__ Slots(void* memory, int count) : memory(static_cast<Piece*>(memory)), count(count) {}

    __device__ void put(int slot, const Value& value) const {
        Piece pieces[PIECES];
        memcpy(pieces, &value, sizeof value);
#pragma unroll
        for (int i = 0; i < PIECES; ++i) memory[i * count + slot] = pieces[i];
    }
    __device__ Value get(int slot) const {
        Piece pieces[PIECES];
#pragma unroll
        for (int i = 0; i < PIECES; ++i) pieces[i] = memory[i * count + slot];
        Value value;
        memcpy(&value, pieces, sizeof value);
        return value;
    }
};

// Sums of the threads of a column into its first row, in pairs, in a fixed order. `slots`: one for each thread of the block.
template <class Value>
__device__ inline void add_rows(const Rows& r, int columns, Value& own, const Slots<Value>& slots) {
    int half = 1;
    while (2 * half < r.rows) half *= 2;
    for (; half > 0; half /= 2) {
        if (r.row >= half && r.row < 2 * half) slots.put((r.row - half) * columns + r.column, own);
        __syncthreads();
        if (r.row < half && r.row + half < r.rows) own.add(slots.get(r.row * columns + r.column));
        __syncthreads();
    }
}

// The block's tile, VECTORS rows of channels, and zeros for those of `tiles` that no block has.
template <int VECTORS, int N>
__device__ inline void store_tile(float* all, int tiles, int channels, int channel, const Values<N> (&own)[VECTORS]) {
    for (int tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
        float* at = all + int64_t(tile) * VECTORS * channels + channel;
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) store_channels(at + int64_t(i) * channels, tile == blockIdx.y ? own[i] : Values<N>{});
    }
}

}  // namespace fused_preact::cuda
