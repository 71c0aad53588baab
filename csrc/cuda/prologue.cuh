// What becomes of x between its arrival in registers and the tensor cores: z = relu(bn(x)), rounded once.
#pragma once
#include <type_traits>

#include "loader.cuh"
#include "norm.cuh"

namespace fused_preact::cuda {

// scale and shift of all channels, in shared memory: by chunks, of a chunk first 4 channels of all and then the other 4.
template <class T, class S>
struct NormVectors {
    float4* memory;
    int chunks;  // in all slabs

    __device__ NormVectors(void* memory, int slabs) : memory(static_cast<float4*>(memory)), chunks(slabs * S::In::CHUNKS) {}

    __device__ void fill(const float* bn, int64_t pitch, int channels) const {
        for (int chunk = threadIdx.x; chunk < channels / 8; chunk += S::THREADS) {
            const Norm<T, 8> norm(bn + 8 * chunk, pitch);
            put(chunk, 0, norm.scale);
            put(chunk, 2, norm.shift);
        }
    }
    __device__ void get(int chunk, Values<8>& scale, Values<8>& shift) const {
        scale = get(chunk, 0);
        shift = get(chunk, 2);
    }

  private:
    __device__ void put(int chunk, int row, const Values<8>& v) const {
        memory[row * chunks + chunk] = {v[0], v[1], v[2], v[3]};
        memory[(row + 1) * chunks + chunk] = {v[4], v[5], v[6], v[7]};
    }
    __device__ Values<8> get(int chunk, int row) const {
        const float4 low = memory[row * chunks + chunk], high = memory[(row + 1) * chunks + chunk];
        return {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
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

// z of a chunk of x.
template <Prologue P, class T>
__device__ inline uint4 activated(uint4 raw, const Values<8>& scale, const Values<8>& shift) {
    if (P == Prologue::none) return raw;
    Values<8> chunk = unpacked<T>(raw);
#pragma unroll
    for (int i = 0; i < 8; ++i) chunk[i] = fmaf(chunk[i], scale[i], shift[i]);
    return packed<P == Prologue::norm_relu, T>(chunk);
}

// scale and shift of a thread's channels.
template <class T>
struct ThreadNorm {
    Values<8> scale, shift;

    // From `channel` on.
    __device__ void load(const float* bn, int64_t pitch, int channel) {
        const Norm<T, 8> norm(bn + channel, pitch);
        scale = norm.scale, shift = norm.shift;
    }
};

// Zeros from row `left` of the thread on.
template <class T, class S>
__device__ inline void apply_prologue(Prologue prologue, char* to, const PixelLoader<T, S>& loader, bool inside, const ThreadNorm<T>& norm,
                                      int left = S::PIXELS) {
    with_prologue(prologue, [&](auto p) {
        store_slab(to, loader, inside, [&](uint4 chunk, int row) { return row < left ? activated<p(), T>(chunk, norm.scale, norm.shift) : uint4{}; });
    });
}

template <class T, class S>
__device__ inline void apply_prologue(Prologue prologue, char* to, const PixelLoader<T, S>& loader, int slab, const NormVectors<T, S>& vectors) {
    const bool inside = loader.inside(slab);
    ThreadNorm<T> norm;
    if (inside && prologue != Prologue::none) vectors.get(slab * S::In::CHUNKS + loader.thread.chunk, norm.scale, norm.shift);
    apply_prologue(prologue, to, loader, inside, norm);
}

// Where a window's chunks come from: z from x. The thread has the channels from `channel` on.
template <class T, Prologue P>
struct Activation {
    using Raw = uint4;
    ThreadNorm<T> norm;

    __device__ explicit Activation(const ThreadNorm<T>& norm) : norm(norm) {}
    __device__ Activation(const float* bn, int64_t pitch, int channel) {
        if (P != Prologue::none) norm.load(bn, pitch, channel);
    }
    __device__ Raw read(const T* from) const { return *reinterpret_cast<const uint4*>(from); }
    __device__ uint4 chunk(Raw raw) const { return activated<P, T>(raw, norm.scale, norm.shift); }
};

}  // namespace fused_preact::cuda
