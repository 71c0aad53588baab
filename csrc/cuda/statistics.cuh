// Count, mean and m2 of y, as it is stored, from the tiles of a block.
#pragma once
#include "column_sums.cuh"
#include "epilogue.cuh"

namespace fused_preact::cuda {

// Thread c has output channel c. Its mean is kept as a difference from the channel's first value: a large mean has no room for what tiles differ by.
template <class T, class S>
struct Statistics {
    float count = 0, reference = 0, mean = 0, m2 = 0;

    // sums: SUMS_BYTES of shared memory. All threads must come.
    __device__ void add(const char* staged, float* sums, const Outputs<S>& outputs, bool inside) {
        // Squares about 0 lose what the mean is larger than the deviation, on tensor cores that truncate still more. Where that is much, and where
        // the tile is cut, sums are taken about the first value.
        constexpr float LARGE = 64;
        const float n = float(outputs.count());
        float2 total{};
        // Always of float32, whose squares are not exact as tf32.
        bool about_first = true;
        if constexpr (sizeof(T) == 2) {
            ColumnSums<T, S> own;
            own.add(staged, staged);
            own.store(sums);
            __syncthreads();
            total = of_column<S>(sums, S::SHARES);
            const bool about_zero = total.x * (total.x / n) <= LARGE * (total.y - total.x * (total.x / n));
            about_first = __syncthreads_or(!about_zero || !outputs.all());
        }
        float about = 0;
        if (count == 0) reference = value_of_first(staged);
        if (about_first) {
            sum_about_first(staged, sums, outputs, inside);
            __syncthreads();
            total = of_column<S>(sums, S::WARPS);
            about = value_of_first(staged);
        }
        const float offset = total.x / n, squares = total.y - total.x * offset;
        merge(n, (about - reference) + offset, squares < 0 ? 0 : squares);
    }

    // As the block's tile, and zeros in those that no block has.
    __device__ void store(float* stats, int tiles, int first, int k) const {
        const int channel = first + threadIdx.x;
        if (threadIdx.x >= S::OUT || channel >= k) return;
        for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            const bool own = tile == blockIdx.x;
            float* const at = stats + int64_t(tile) * 3 * k + channel;
            at[0] = own ? count : 0;
            at[k] = own ? reference + mean : 0;
            at[2 * int64_t(k)] = own ? m2 : 0;
        }
    }

  private:
    // Chan: mean = mean + delta*n/total,  m2 = m2 + m2' + delta^2*count*n/total
    __device__ void merge(float n, float other_mean, float other_m2) {
        const float total = count + n, share = n / total, delta = other_mean - mean;
        mean += delta * share;
        m2 += other_m2 + delta * delta * (count * share);
        count = total;
    }

    // Sums of y - first and of its square, a row of `sums` for each warp.
    static __device__ void sum_about_first(const char* staged, float* sums, const Outputs<S>& outputs, bool inside) {
        const int chunk = threadIdx.x % S::Out::CHUNKS;
        auto chunk_at = [&](int at) { return unpacked<T>(*reinterpret_cast<const uint4*>(staged + at)); };
        const Values<PER_CHUNK<T>> first = chunk_at(S::Out::at(0, chunk));
        Values<PER_CHUNK<T>> sum{}, square{};
        each_output<S>(outputs, inside, [&](int at, int) {
            const Values<PER_CHUNK<T>> value = chunk_at(at);
#pragma unroll
            for (int i = 0; i < PER_CHUNK<T>; ++i) {
                const float d = value[i] - first[i];
                sum[i] += d;
                square[i] = fmaf(d, d, square[i]);
            }
        });
        store_warp_sums<S>(sums, sum, square);
    }

    static __device__ float value_of_first(const char* staged) {
        const int channel = threadIdx.x % S::OUT;
        return widened(*reinterpret_cast<const T*>(staged + S::Out::at(0, channel / PER_CHUNK<T>) + channel % PER_CHUNK<T> * sizeof(T)));
    }
};

}  // namespace fused_preact::cuda
