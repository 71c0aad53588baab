// From accumulators of dz to what `emit` says: g, sums, dx.
#pragma once
#include "grad_sums.cuh"

namespace fused_preact::cuda {

// All bits of the halves in which z is not 0 (nor -0). z is not negative; where it is NaN the gradient is kept.
__device__ inline uint32_t alive(uint32_t z) {
    uint32_t bits;
    asm("prmt.b32 %0, %1, %1, 0xbb99;" : "=r"(bits) : "r"((z & 0x7fff7fffu) + 0x7fff7fffu));
    return bits;
}

// g of a chunk of dz: of 16 bits it stops where z, as it is rounded, is 0, of float32 where bn(x) is not positive.
__device__ inline uint4 masked(uint4 dz, uint4 z) { return {dz.x & alive(z.x), dz.y & alive(z.y), dz.z & alive(z.z), dz.w & alive(z.w)}; }
template <class T>
__device__ inline uint4 masked(uint4 dz, uint4 x, const ThreadNorm<T>& norm) {
    if constexpr (sizeof(T) == 2) return masked(dz, activated<Prologue::norm_relu, T>(x, norm));
    Values<PER_CHUNK<T>> g = unpacked<T>(dz);
    const Values<PER_CHUNK<T>> in = unpacked<T>(x);
#pragma unroll
    for (int i = 0; i < PER_CHUNK<T>; ++i) g[i] = norm(in[i], i) <= 0 ? 0 : g[i];
    return packed<false, T>(g);
}

// The end of a dgrad kernel.
template <class T, class S>
struct InputGrad : GradSums<T, S> {
    using Sums = GradSums<T, S>;
    using Sums::Sums, Sums::args, Sums::first, Sums::channel, Sums::inside;

    // All threads must come.
    __device__ void start() {
        if (args.sums) Sums::start_sums();
    }

    // add_dz of a tile and x, unless it is there (null), on their way into shared memory.
    __device__ void copy_inputs(char* x, char* staged, const Outputs<S>& outputs) const {
        if (x && args.emit != Emit::dz) copy_output_like<T, S>(x, args.x, outputs, first, args.conv.c);
        if (args.add_dz) copy_output_like<T, S>(staged, args.add_dz, outputs, first, args.conv.c);
    }

    // `staged` has add_dz, if there is one, and then dz, as it is stored.
    __device__ void stage(char* staged, const Accumulators<S>& dz) const {
        if (args.add_dz)
            stage_output<true, T, S>(staged, dz);
        else
            stage_output<false, T, S>(staged, dz);
    }

    // The staged dz of a tile into `out` and the sums. z: if it lies in shared memory, beside x; then for no dx. All threads must come.
    template <bool Z>
    __device__ void finish(char* staged, char* x, const char* z, const Outputs<S>& outputs) {
        const bool masked = args.emit != Emit::dz && args.relu && args.bn;
        if (!Z && args.coeffs)
            masked ? each<true, !Z, Z>(staged, x, z, outputs) : each<false, !Z, Z>(staged, x, z, outputs);
        else
            masked ? each<true, false, Z>(staged, x, z, outputs) : each<false, false, Z>(staged, x, z, outputs);
        if (!args.sums) return;
        if (Sums::shifted) Sums::shift(x);
        Sums::add_tile(x, staged);
    }

    // The block's tile of sums, and zeros in those that no block has. memory: SUMS_BYTES that nobody uses any more. All threads must come.
    __device__ void store_sums(float* memory) {
        if (!args.sums) return;
        __syncthreads();
        // sum g*xhat = invstd * sum g*(x - mean)
        const float2 total = Sums::total(memory);
        const int own = first + threadIdx.x, c = args.conv.c;
        if (threadIdx.x >= S::OUT || own >= c) return;
        const float invstd = args.bn[args.bn_pitch + own], scaled = invstd * Sums::centred(total, own);
        for (int tile = blockIdx.x; tile < args.sums_tiles; tile += gridDim.x) {
            float* const at = args.sums + int64_t(tile) * 2 * c + own;
            at[0] = tile == blockIdx.x ? total.x : 0;
            at[c] = tile == blockIdx.x ? scaled : 0;
        }
    }

  private:
    template <bool MASKED, bool DX, bool Z>
    __device__ void each(char* staged, char* x, const char* z, const Outputs<S>& outputs) {
        using Thread = Walk<S::THREADS, S::PIXELS, S::Out::CHUNKS>;
        const Thread thread;
        // Defined in any case: else registers keep them from tile to tile.
        ThreadNorm<T> norm{};
        NormGrad<T, PER_CHUNK<T>> grad{};
        const int existing = inside ? channel : 0;
        // The sums of float32 are about the mean.
        const bool centred = norm.CENTRED && args.sums;
        if ((MASKED && !Z) || centred) norm = ThreadNorm<T>(reloaded(args.bn) + existing, args.bn_pitch);
        if (DX) grad = NormGrad<T, PER_CHUNK<T>>(reloaded(args.coeffs) + existing, args.conv.c);
        const int64_t first_at = outputs.at(thread, channel);
        const int step = outputs.template step<Thread>();
        T* const out = static_cast<T*>(args.out);
        auto chunk = [&](int at, int i) {
            uint4 g = *reinterpret_cast<const uint4*>(staged + at), raw{};
            if ((MASKED && !Z) || DX || centred) raw = *reinterpret_cast<const uint4*>(x + at);
            if (MASKED) g = Z ? masked(g, *reinterpret_cast<const uint4*>(z + at)) : masked<T>(g, raw, norm);
            if ((MASKED || centred) && args.sums) Sums::add_chunk(reinterpret_cast<uint4*>(staged + at), g, raw, norm);
            if (!out) return;
            const int64_t to = first_at + int64_t(i) * step;
            if (DX) {
                const Values<PER_CHUNK<T>> in = unpacked<T>(raw);
                Values<PER_CHUNK<T>> dx = unpacked<T>(g);
#pragma unroll
                for (int j = 0; j < PER_CHUNK<T>; ++j) dx[j] = grad(dx[j], in[j], j);
                if (args.residual_grad) dx.add(load<PER_CHUNK<T>>(static_cast<const T*>(args.residual_grad) + to));
                g = packed<false, T>(dx);
            }
            store_global(out + to, g);
        };
        const int at = S::Out::at(thread.row, thread.chunk);
        if (inside && outputs.all()) {
#pragma unroll
            for (int i = 0; i < Thread::COUNT; ++i) chunk(at + i * Thread::STEP * S::Out::BYTES, i);
            return;
        }
#pragma unroll 1
        for (int i = 0; i < Thread::COUNT; ++i) {
            const int own = at + i * Thread::STEP * S::Out::BYTES;
            if (inside && outputs.has(thread.row + i * Thread::STEP))
                chunk(own, i);
            else
                Sums::skip_chunk(reinterpret_cast<uint4*>(staged + own));
        }
    }
};

}  // namespace fused_preact::cuda
