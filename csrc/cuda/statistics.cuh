// Count, mean and m2 of y, as it is stored, from the tiles of a block.
#pragma once
#include "epilogue.cuh"

namespace fused_preact::cuda {

// Thread c has output channel c. Its mean is kept as a difference from the channel's first value: a large mean has no room for what tiles differ by.
template <class T, class S>
struct Statistics {
    float count = 0, reference = 0, mean = 0, m2 = 0;

    // A tile, of which y has so many pixels. sums: SUMS_BYTES of shared memory. All threads must come.
    __device__ void add(const char* staged, float* sums, int pixels, bool inside) {
        // Squares about 0 lose what the mean is larger than the deviation, on tensor cores that truncate still more. Where that is much, and where
        // the tile is cut, sums are taken about the first value.
        constexpr float LARGE = 64;
        sum_on_tensor_cores(staged, sums);
        __syncthreads();
        float2 total = column(sums, S::SHARES);
        const float n = float(pixels);
        const bool about_zero = total.x * (total.x / n) <= LARGE * (total.y - total.x * (total.x / n));
        float about = 0;
        if (count == 0) reference = value_of_first(staged);
        if (__syncthreads_or(!about_zero || pixels < S::PIXELS)) {
            sum_about_first(staged, sums, pixels, inside);
            __syncthreads();
            total = column(sums, S::WARPS);
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

    // The two sums of channel threadIdx.x, each [2, OUT] in so many rows.
    static __device__ float2 column(const float* sums, int rows) {
        float2 total{};
        if (threadIdx.x < S::OUT)
            for (int row = 0; row < rows; ++row) {
                total.x += sums[row * 2 * S::OUT + threadIdx.x];
                total.y += sums[(row * 2 + 1) * S::OUT + threadIdx.x];
            }
        return total;
    }

    // V: 8 channels x 16 pixels. (V over rows of ones) * V^T has the sums of squares on the diagonal of its upper half, and the sums in each row
    // of the lower.
    static __device__ void sum_on_tensor_cores(const char* staged, float* sums) {
        constexpr int WIDE = S::GROUPS < S::WARPS ? S::GROUPS : S::WARPS;
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, share = warp / WIDE, row = lane / 4, column = 2 * (lane % 4);
        for (int group = warp % WIDE; group < S::GROUPS; group += WIDE) {
            const uint32_t at = shared_address(staged) + S::Out::at(16 * share + lane % 16, 2 * group + lane / 16);
            float products[2][4]{};
#pragma unroll
            for (int i = 0; i < S::PIXELS / 16 / S::SHARES; ++i) {
                uint32_t v[4];
                load_transposed(v, at + i * S::SHARES * 16 * S::Out::BYTES);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const uint32_t low = v[2 * half], high = v[2 * half + 1];
                    multiply_add(products[half], {low, ones(T{}), high, ones(T{})}, low, high, T{});
                }
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float* const to = sums + share * 2 * S::OUT + group * 16 + half * 8;
                if (row == 0) *reinterpret_cast<float2*>(to + column) = {products[half][2], products[half][3]};
                if (row == column) to[S::OUT + row] = products[half][0];
                if (row == column + 1) to[S::OUT + row] = products[half][1];
            }
        }
    }

    // Sums of y - first and of its square, a row of `sums` for each warp.
    static __device__ void sum_about_first(const char* staged, float* sums, int pixels, bool inside) {
        constexpr int CHUNKS = S::Out::CHUNKS;
        static_assert(CHUNKS <= 32);
        const int chunk = threadIdx.x % CHUNKS, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        auto chunk_at = [&](int at) { return unpacked<T>(*reinterpret_cast<const uint4*>(staged + at)); };
        const Values<8> first = chunk_at(S::Out::at(0, chunk));
        Values<8> sum{}, square{};
        each_output<S>(pixels, inside, [&](int at, int) {
            const Values<8> value = chunk_at(at);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const float d = value[i] - first[i];
                sum[i] += d;
                square[i] = fmaf(d, d, square[i]);
            }
        });
#pragma unroll
        for (int apart = CHUNKS; apart < 32; apart *= 2)
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                sum[i] += __shfl_xor_sync(~0u, sum[i], apart);
                square[i] += __shfl_xor_sync(~0u, square[i], apart);
            }
        if (lane >= CHUNKS) return;
        store_channels(sums + warp * 2 * S::OUT + 8 * chunk, sum);
        store_channels(sums + (warp * 2 + 1) * S::OUT + 8 * chunk, square);
    }

    static __device__ float value_of_first(const char* staged) {
        const int channel = threadIdx.x % S::OUT;
        return widened(*reinterpret_cast<const T*>(staged + S::Out::at(0, channel / 8) + channel % 8 * 2));
    }
};

}  // namespace fused_preact::cuda
