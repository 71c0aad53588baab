// From accumulators of dz to what `emit` says: g, sums, dx.
#pragma once
#include "column_sums.cuh"
#include "epilogue.cuh"
#include "prologue.cuh"

namespace fused_preact::cuda {

// All bits of the halves in which z is not 0 (nor -0). z is not negative; where it is NaN the gradient is kept.
__device__ inline uint32_t alive(uint32_t z) {
    uint32_t bits;
    asm("prmt.b32 %0, %1, %1, 0xbb99;" : "=r"(bits) : "r"((z & 0x7fff7fffu) + 0x7fff7fffu));
    return bits;
}

// The end of a dgrad kernel. A thread has the same 8 channels of x in all tiles.
template <class T, class S>
struct InputGrad {
    const BnReluConv2dBwd& args;
    int first, channel;  // of the block, of the thread
    bool inside;         // whether x has the thread's channels
    // Sums are about a value near the mean, where that is large: sums about 0 would lose it.
    bool shifted = false;
    ColumnSums<T, S> sums;

    __device__ InputGrad(const BnReluConv2dBwd& args, int first)
        : args(args), first(first), channel(first + threadIdx.x % S::Out::CHUNKS * 8), inside(channel < args.conv.c) {}

    // All threads must come.
    __device__ void start() {
        if (!args.sums) return;
        const int own = first + threadIdx.x;
        shifted = __syncthreads_or(threadIdx.x < S::OUT && own < args.conv.c && shift_of(own) != 0);
    }

    // add_dz of a tile and x, unless it is there (null), on their way into shared memory.
    __device__ void copy_inputs(char* x, char* staged, const Outputs<S>& outputs) const {
        if (x && args.emit != Emit::dz) copy_output_like<T, S>(x, args.x, outputs, first, args.conv.c);
        if (args.add_dz) copy_output_like<T, S>(staged, args.add_dz, outputs, first, args.conv.c);
    }

    // `staged` has add_dz, if there is one, and then dz, as it is rounded.
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
        if (shifted) shift(x);
        __syncthreads();
        sums.add(x, staged);
    }

    // The block's tile of sums, and zeros in those that no block has. memory: SUMS_BYTES that nobody uses any more. All threads must come.
    __device__ void store_sums(float* memory) const {
        if (!args.sums) return;
        __syncthreads();
        sums.store(memory);
        __syncthreads();
        // sum g*xhat = invstd*(sum g*(x - shift) - (mean - shift)*sum g)
        const float2 total = ColumnSums<T, S>::of_column(memory, S::SHARES);
        const int own = first + threadIdx.x, c = args.conv.c;
        if (threadIdx.x >= S::OUT || own >= c) return;
        const float invstd = args.bn[args.bn_pitch + own], scaled = invstd * (total.y - (args.bn[own] - shift_of(own)) * total.x);
        for (int tile = blockIdx.x; tile < args.sums_tiles; tile += gridDim.x) {
            float* const at = args.sums + int64_t(tile) * 2 * c + own;
            at[0] = tile == blockIdx.x ? total.x : 0;
            at[c] = tile == blockIdx.x ? scaled : 0;
        }
    }

  private:
    // The mean as T has it, if it is more than 8 deviations. Differences of x from it are exact, as long as they are small beside it.
    __device__ float shift_of(int channel) const {
        const float mean = args.bn[channel];
        return fabsf(mean) * args.bn[args.bn_pitch + channel] > 8 ? widened(T(mean)) : 0;
    }

    template <bool MASKED, bool DX, bool Z>
    __device__ void each(char* staged, char* x, const char* z, const Outputs<S>& outputs) const {
        using Thread = Walk<S::THREADS, S::PIXELS, S::Out::CHUNKS>;
        const Thread thread;
        // Defined in any case: else registers keep them from tile to tile.
        ThreadNorm<T> norm{};
        Values<8> a{}, b{}, c{};
        const int existing = inside ? channel : 0;
        if (MASKED && !Z) norm = ThreadNorm<T>(reloaded(args.bn) + existing, args.bn_pitch);
        if (DX) {
            // dx = a*g + b*(x - mean) + c = a*g + (b*x + (c - b*mean))
            const float* const own = reloaded(args.coeffs) + existing;
            a = channels<8>(own), b = channels<8>(own + args.conv.c), c = channels<8>(own + 3 * args.conv.c);
            const Values<8> mean = channels<8>(own + 2 * args.conv.c);
#pragma unroll
            for (int i = 0; i < 8; ++i) c[i] = fmaf(-b[i], mean[i], c[i]);
        }
        const int64_t first_at = outputs.at(thread, channel);
        const int step = outputs.template step<Thread>();
        T* const out = static_cast<T*>(args.out);
        auto chunk = [&](int at, int i) {
            uint4 g = *reinterpret_cast<const uint4*>(staged + at), raw{};
            if ((MASKED && !Z) || DX) raw = *reinterpret_cast<const uint4*>(x + at);
            if (MASKED) {
                const uint4 own = Z ? *reinterpret_cast<const uint4*>(z + at) : activated<Prologue::norm_relu, T>(raw, norm);
                g = {g.x & alive(own.x), g.y & alive(own.y), g.z & alive(own.z), g.w & alive(own.w)};
                if (args.sums) *reinterpret_cast<uint4*>(staged + at) = g;
            }
            if (!out) return;
            const int64_t to = first_at + int64_t(i) * step;
            if (DX) {
                const Values<8> in = unpacked<T>(raw), grad = unpacked<T>(g);
                Values<8> dx;
#pragma unroll
                for (int j = 0; j < 8; ++j) dx[j] = fmaf(a[j], grad[j], fmaf(b[j], in[j], c[j]));
                if (args.residual_grad) dx.add(load<8>(static_cast<const T*>(args.residual_grad) + to));
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
        // What x does not have counts in no sum.
#pragma unroll 1
        for (int i = 0; i < Thread::COUNT; ++i) {
            const int own = at + i * Thread::STEP * S::Out::BYTES;
            if (inside && outputs.has(thread.row + i * Thread::STEP))
                chunk(own, i);
            else
                *reinterpret_cast<uint4*>(staged + own) = uint4{};
        }
    }

    // The thread's chunks of x.
    __device__ void shift(char* x) const {
        if (!inside) return;
        const Walk<S::THREADS, S::PIXELS, S::Out::CHUNKS> thread;
#pragma unroll 1
        for (int i = 0; i < thread.COUNT; ++i) {
            uint4* const chunk = reinterpret_cast<uint4*>(x + S::Out::at(thread.row, thread.chunk) + i * thread.STEP * S::Out::BYTES);
            Values<8> value = unpacked<T>(*chunk);
#pragma unroll
            for (int j = 0; j < 8; ++j) value[j] -= shift_of(channel + j);
            *chunk = packed<false, T>(value);
        }
    }
};

}  // namespace fused_preact::cuda
