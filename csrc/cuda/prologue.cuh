// What becomes of x between its arrival in registers and the tensor cores: z = relu(bn(x)), rounded once.
#pragma once
#include <type_traits>

#include "loader.cuh"
#include "norm.cuh"

namespace fused_preact::cuda {

// The norm of a thread's channels.
template <class T>
using ThreadNorm = Norm<T, PER_CHUNK<T>>;

// The norm of all channels, in shared memory: by chunks, of a chunk first 4 channels of all and then the others.
template <class T, class S>
struct NormVectors {
    static constexpr int FOURS = PER_CHUNK<T> / 4;
    float4* memory;
    int chunks;  // in all slabs

    __device__ NormVectors(void* memory, int slabs) : memory(static_cast<float4*>(memory)), chunks(slabs * S::In::CHUNKS) {}

    __device__ void fill(const float* bn, int64_t pitch, int channels) const {
        for (int chunk = threadIdx.x; chunk < channels / PER_CHUNK<T>; chunk += S::THREADS) {
            const ThreadNorm<T> norm(bn + PER_CHUNK<T> * chunk, pitch);
            put(chunk, 0, norm.scale);
            put(chunk, 1, norm.shift);
            if (norm.CENTRED) put(chunk, 2, norm.mean);
        }
    }
    __device__ void get(int chunk, ThreadNorm<T>& norm) const {
        norm.scale = get(chunk, 0);
        norm.shift = get(chunk, 1);
        if (norm.CENTRED) norm.mean = get(chunk, 2);
    }

  private:
    __device__ void put(int chunk, int vector, const Values<PER_CHUNK<T>>& v) const {
#pragma unroll
        for (int i = 0; i < FOURS; ++i) memory[(vector * FOURS + i) * chunks + chunk] = {v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]};
    }
    __device__ Values<PER_CHUNK<T>> get(int chunk, int vector) const {
        Values<PER_CHUNK<T>> v;
#pragma unroll
        for (int i = 0; i < FOURS; ++i) {
            const float4 four = memory[(vector * FOURS + i) * chunks + chunk];
            v[4 * i] = four.x, v[4 * i + 1] = four.y, v[4 * i + 2] = four.z, v[4 * i + 3] = four.w;
        }
        return v;
    }
};

// The loaded chunks into a slab in shared memory, each through `each`(chunk, its row from the thread's first on); zeros where x has no channels.
template <class T, class S, class Raw, class Each>
__device__ inline void store_slab(char* slab, const PixelLoader<T, S, Raw>& loader, bool inside, Each&& each) {
    using Thread = typename PixelLoader<T, S, Raw>::Thread;
    char* const to = slab + S::In::at(loader.thread.row, loader.thread.chunk);
    auto put = [&](int i, uint4 chunk) { *reinterpret_cast<uint4*>(to + i * Thread::STEP * S::In::BYTES) = chunk; };
    if (inside) {
#pragma unroll
        for (int i = 0; i < Thread::COUNT; ++i) put(i, each(loader.chunks[i], i * Thread::STEP));
    } else {
#pragma unroll
        for (int i = 0; i < Thread::COUNT; ++i) put(i, uint4{});
    }
}

enum class Prologue { none, norm, norm_relu };

inline __device__ Prologue prologue_of(const float* bn, bool relu) { return !bn ? Prologue::none : relu ? Prologue::norm_relu : Prologue::norm; }

// body(P) with the prologue as a constant.
template <class Body>
__device__ inline void with_prologue(Prologue prologue, Body&& body) {
    if (prologue == Prologue::none)
        body(std::integral_constant<Prologue, Prologue::none>{});
    else if (prologue == Prologue::norm)
        body(std::integral_constant<Prologue, Prologue::norm>{});
    else
        body(std::integral_constant<Prologue, Prologue::norm_relu>{});
}

// z of a chunk of x, as the tensor cores take it.
template <Prologue P, class T>
__device__ inline uint4 activated(uint4 raw, const ThreadNorm<T>& norm) {
    if (P == Prologue::none) return operand(raw, T{});
    Values<PER_CHUNK<T>> chunk = unpacked<T>(raw);
#pragma unroll
    for (int i = 0; i < PER_CHUNK<T>; ++i) chunk[i] = norm(chunk[i], i);
    return operand(packed<P == Prologue::norm_relu, T>(chunk), T{});
}

// Zeros from row `left` of the thread on.
template <class T, class S>
__device__ inline void apply_prologue(Prologue prologue, char* to, const PixelLoader<T, S>& loader, bool inside, const ThreadNorm<T>& norm,
                                      int left = S::PIXELS) {
    with_prologue(prologue, [&](auto p) {
        store_slab(to, loader, inside, [&](uint4 chunk, int row) { return row < left ? activated<p(), T>(chunk, norm) : uint4{}; });
    });
}

template <class T, class S>
__device__ inline void apply_prologue(Prologue prologue, char* to, const PixelLoader<T, S>& loader, int slab, const NormVectors<T, S>& vectors) {
    const bool inside = loader.inside(slab);
    ThreadNorm<T> norm;
    if (inside && prologue != Prologue::none) vectors.get(slab * S::In::CHUNKS + loader.thread.chunk, norm);
    apply_prologue(prologue, to, loader, inside, norm);
}

// Where a window's chunks come from: z from x. The thread has the channels from `channel` on.
template <class T, Prologue P>
struct Activation {
    using Raw = uint4;
    ThreadNorm<T> norm;

    __device__ explicit Activation(const ThreadNorm<T>& norm) : norm(norm) {}
    __device__ Activation(const float* bn, int64_t pitch, int channel) {
        if (P != Prologue::none) norm = ThreadNorm<T>(bn + channel, pitch);
    }
    __device__ Raw read(const T* from) const { return *reinterpret_cast<const uint4*>(from); }
    __device__ uint4 chunk(Raw raw) const { return activated<P, T>(raw, norm); }
};

}  // namespace fused_preact::cuda
