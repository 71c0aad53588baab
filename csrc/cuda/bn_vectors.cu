// What becomes of statistics and sums: the vectors of a norm, the coefficients of its backward. A thread has one channel and some of the tiles.
#include "kernels.h"
#include "launch.cuh"

namespace fused_preact::cuda {
namespace {

// These kernels take the time of their longest chain of loads and additions: so there are many groups of threads, and each has AT_ONCE tiles on their
// way together.
constexpr int LANES = 16, GROUPS = 32, THREADS = LANES * GROUPS, AT_ONCE = 4;

// count, sum n*d and sum m2 + n*d^2, where d is by how much a tile's mean differs from the first. In double: where the mean is large, float32
// would lose the little by which tiles differ.
struct Moments {
    double count = 0, first = 0, second = 0;

    __device__ void add(const Moments& other) {
        count += other.count;
        first += other.first;
        second += other.second;
    }
    __device__ Moments of_other_half() const {
        return {__shfl_xor_sync(~0u, count, LANES), __shfl_xor_sync(~0u, first, LANES), __shfl_xor_sync(~0u, second, LANES)};
    }
};

struct Pair {
    float g = 0, gx = 0;

    __device__ void add(const Pair& other) {
        g += other.g;
        gx += other.gx;
    }
    __device__ Pair of_other_half() const { return {__shfl_xor_sync(~0u, g, LANES), __shfl_xor_sync(~0u, gx, LANES)}; }
};

__device__ int own_channel() { return blockIdx.x * LANES + threadIdx.x % LANES; }
// Whether the thread is the one that has the result of its channel.
__device__ bool has_result(int channels) { return threadIdx.x < LANES && own_channel() < channels; }

// of(vectors of a tile) of all tiles, [tiles, VECTORS, channels], added in a fixed order. Tiles that are not there are zeros.
template <class Value, int VECTORS, class Of>
__device__ Value over_tiles(const float* all, int tiles, int channels, Of&& of) {
    constexpr int WARPS = THREADS / 32;
    __shared__ Value of_warp[WARPS][LANES];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % LANES, half = threadIdx.x % 32 / LANES, channel = own_channel();
    Value own;
    if (channel >= channels) tiles = 0;
    for (int first = threadIdx.x / LANES; first < tiles; first += AT_ONCE * GROUPS) {
        float vectors[AT_ONCE][VECTORS];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const int tile = first + i * GROUPS;
            const float* const at = all + int64_t(tile) * VECTORS * channels + channel;
#pragma unroll
            for (int j = 0; j < VECTORS; ++j) vectors[i][j] = tile < tiles ? at[int64_t(j) * channels] : 0;
        }
        // Else ptxas moves loads down to their uses, behind the wait for others.
        __threadfence_block();
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) own.add(of(vectors[i]));
    }
    own.add(own.of_other_half());
    if (half == 0) of_warp[warp][lane] = own;
    __syncthreads();
    if (warp > 0) return own;
    const Value(*const mine)[LANES] = of_warp + half * (WARPS / 2);
    own = mine[0][lane];
#pragma unroll
    for (int i = 1; i < WARPS / 2; ++i) own.add(mine[i][lane]);
    own.add(own.of_other_half());
    return own;
}

// inverse: 1/count.
struct Statistics {
    double count, inverse, mean, m2;
};

// The mean of the channel's first tile that is not empty; 0 if it is not finite: then the mean of all is what it would be about 0.
__device__ double first_mean(const BnFinalize& args) {
    const int c = own_channel();
    if (args.tiles == 0 || c >= args.channels) return 0;
    const float* tile = args.stats + c;
    float count = tile[0], mean = tile[args.channels];
    for (int left = args.tiles - 1; count == 0 && left > 0; --left) {
        tile += 3 * int64_t(args.channels);
        count = tile[0], mean = tile[args.channels];
    }
    return count != 0 && isfinite(mean) ? mean : 0;
}

// mean = mean0 + sum n*d / N,  m2 = sum (m2 + n*d^2) - (sum n*d)^2 / N
__device__ Statistics merged(const BnFinalize& args) {
    const double about = first_mean(args);
    const Moments all = over_tiles<Moments, 3>(args.stats, args.tiles, args.channels, [&](const float(&tile)[3]) {
        const double n = tile[0], d = tile[1] - about;
        return n == 0 ? Moments{} : Moments{n, n * d, tile[2] + n * d * d};
    });
    const double inverse = 1 / fmax(all.count, 1.0), offset = all.first * inverse, m2 = all.second - all.first * offset;
    return {all.count, inverse, about + offset, m2 < 0 ? 0 : m2};
}

__global__ void __launch_bounds__(THREADS) bn_merge_kernel(const BnFinalize args) {
    const int c = own_channel();
    const Statistics all = merged(args);
    if (!has_result(args.channels)) return;
    args.bn[c] = float(all.count);
    args.bn[args.bn_pitch + c] = float(all.mean);
    args.bn[2 * args.bn_pitch + c] = float(all.m2);
}

// The channel's, or `other` if there is no vector. Called before the sums, so that it is on its way with them.
__device__ float own_value(const float* vector, int channels, float other = 0) { return vector && has_result(channels) ? vector[own_channel()] : other; }

// bn: (mean, invstd, scale, beta, 1/M); the running statistics move, the variance by the unbiased one.
__global__ void __launch_bounds__(THREADS) bn_finalize_kernel(const BnFinalize args) {
    const int c = own_channel();
    const float gamma = own_value(args.gamma, args.channels, 1), beta = own_value(args.beta, args.channels);
    const float running_mean = own_value(args.running_mean, args.channels), running_var = own_value(args.running_var, args.channels);
    Statistics all = merged(args);
    if (!has_result(args.channels)) return;
    if (args.frozen && args.running_mean) all = {1, 1, running_mean, running_var};
    const float mean = float(all.mean), invstd = float(rsqrt(all.m2 * all.inverse + double(args.eps)));
    float* bn = args.bn + c;
    bn[0] = mean;
    bn[args.bn_pitch] = invstd;
    bn[2 * args.bn_pitch] = invstd * gamma;
    bn[3 * args.bn_pitch] = beta;
    bn[4 * args.bn_pitch] = args.frozen ? 0 : float(all.inverse);
    if (c == 0 && args.num_batches_tracked && !args.cumulative) *args.num_batches_tracked += 1;
    if (args.running_mean && !args.frozen) {
        const float weight = args.cumulative ? 1 / float(*args.num_batches_tracked) : args.momentum;
        args.running_mean[c] = running_mean + weight * (mean - running_mean);
        args.running_var[c] = running_var + weight * (float(all.m2 / fmax(all.count - 1, 1.0)) - running_var);
    }
}

// dx = scale*(g - dbeta/M - xhat*dgamma/M) = a*g + b*(x - mean) + c
__global__ void __launch_bounds__(THREADS) bn_coeffs_kernel(const BnCoeffs args) {
    const int c = own_channel();
    float bn[5];
#pragma unroll
    for (int i = 0; i < 5; ++i) bn[i] = own_value(args.bn + i * args.bn_pitch, args.channels);
    const auto [mean, invstd, scale, beta, inverse] = bn;
    const Pair all = over_tiles<Pair, 2>(args.sums, args.tiles, args.channels, [](const float(&tile)[2]) { return Pair{tile[0], tile[1]}; });
    if (!has_result(args.channels)) return;
    float* coeffs = args.coeffs + c;
    coeffs[0] = scale;
    coeffs[args.channels] = -scale * invstd * (all.gx * inverse);
    coeffs[2 * args.channels] = mean;
    coeffs[3 * args.channels] = -scale * (all.g * inverse);
    args.dgamma[c] = all.gx;
    args.dbeta[c] = all.g;
}

template <class Record>
Status launch(void (*kernel)(Record), const Record& args) {
    return on(args.target, [&](cudaStream_t stream) { kernel<<<(args.channels + LANES - 1) / LANES, THREADS, 0, stream>>>(args); });
}

}  // namespace

Versions versions() {
    Versions found{};
    cudaDriverGetVersion(&found.driver);
    cudaRuntimeGetVersion(&found.runtime);
    return found;
}

Status launch_bn_merge(const BnFinalize& args) { return launch(bn_merge_kernel, args); }
Status launch_bn_finalize(const BnFinalize& args) { return launch(bn_finalize_kernel, args); }
Status launch_bn_coeffs(const BnCoeffs& args) { return launch(bn_coeffs_kernel, args); }

}  // namespace fused_preact::cuda
