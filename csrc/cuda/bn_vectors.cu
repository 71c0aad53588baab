// What becomes of statistics and sums: the vectors of a norm, the coefficients of its backward. A thread has one channel and some tiles.
#include "kernels.h"
#include "launch.cuh"

namespace fused_preact::cuda {
namespace {

constexpr int LANES = 32, GROUPS = 8;

// In double: where the mean is large, float32 would lose the little by which tiles differ.
struct Merged {
    double count = 0, mean = 0, m2 = 0;

    // Chan: mean = mean + delta*n/total,  m2 = m2 + m2' + delta^2*count*n/total
    __device__ void add(const Merged& other) {
        if (other.count == 0) return;
        const double total = count + other.count, share = other.count / total, delta = other.mean - mean;
        mean += delta * share;
        m2 += other.m2 + delta * delta * (count * share);
        count = total;
    }
};

struct Pair {
    float g = 0, gx = 0;

    __device__ void add(const Pair& other) {
        g += other.g;
        gx += other.gx;
    }
};

// of(tile, channel) of all tiles, added in a fixed order. The result is that of the threads of group 0 whose channel exists.
template <class Value, class Of>
__device__ Value over_tiles(int tiles, int channels, int channel, Of&& of) {
    __shared__ Value all[GROUPS][LANES];
    Value own;
    const int group = threadIdx.y;
    if (channel < channels)
        for (int tile = tiles * group / GROUPS; tile < tiles * (group + 1) / GROUPS; ++tile) own.add(of(tile, channel));
    all[group][threadIdx.x] = own;
    __syncthreads();
    if (group == 0)
        for (int other = 1; other < GROUPS; ++other) own.add(all[other][threadIdx.x]);
    return own;
}

__device__ int own_channel() { return blockIdx.x * LANES + threadIdx.x; }

__device__ Merged merged(const BnFinalize& args, int channel) {
    return over_tiles<Merged>(args.tiles, args.channels, channel, [&](int tile, int c) {
        const float* stats = args.stats + int64_t(tile) * 3 * args.channels + c;
        return Merged{stats[0], stats[args.channels], stats[2 * args.channels]};
    });
}

__global__ void bn_merge_kernel(const BnFinalize args) {
    const int c = own_channel();
    const Merged all = merged(args, c);
    if (threadIdx.y > 0 || c >= args.channels) return;
    args.bn[c] = float(all.count);
    args.bn[args.bn_pitch + c] = float(all.mean);
    args.bn[2 * args.bn_pitch + c] = float(all.m2);
}

// bn: (mean, invstd, scale, beta, 1/M); the running statistics move, the variance by the unbiased one.
__global__ void bn_finalize_kernel(const BnFinalize args) {
    const int c = own_channel();
    Merged all = merged(args, c);
    if (threadIdx.y > 0 || c >= args.channels) return;
    if (args.frozen && args.running_mean) all = {1, args.running_mean[c], args.running_var[c]};
    const double n = fmax(all.count, 1.0);
    const float mean = float(all.mean), invstd = float(1 / sqrt(all.m2 / n + double(args.eps)));
    float* bn = args.bn + c;
    bn[0] = mean;
    bn[args.bn_pitch] = invstd;
    bn[2 * args.bn_pitch] = args.gamma ? invstd * args.gamma[c] : invstd;
    bn[3 * args.bn_pitch] = args.beta ? args.beta[c] : 0;
    bn[4 * args.bn_pitch] = args.frozen ? 0 : float(1 / n);
    if (c == 0 && args.num_batches_tracked && !args.cumulative) *args.num_batches_tracked += 1;
    if (args.running_mean && !args.frozen) {
        const float weight = args.cumulative ? 1 / float(*args.num_batches_tracked) : args.momentum;
        args.running_mean[c] += weight * (mean - args.running_mean[c]);
        args.running_var[c] += weight * (float(all.m2 / fmax(n - 1, 1.0)) - args.running_var[c]);
    }
}

// dx = scale*(g - dbeta/M - xhat*dgamma/M) = a*g + b*(x - mean) + c
__global__ void bn_coeffs_kernel(const BnCoeffs args) {
    const int c = own_channel();
    const Pair all = over_tiles<Pair>(args.tiles, args.channels, c, [&](int tile, int channel) {
        const float* sums = args.sums + int64_t(tile) * 2 * args.channels + channel;
        return Pair{sums[0], sums[args.channels]};
    });
    if (threadIdx.y > 0 || c >= args.channels) return;
    const float* bn = args.bn + c;
    const float invstd = bn[args.bn_pitch], scale = bn[2 * args.bn_pitch], inverse = bn[4 * args.bn_pitch];
    float* coeffs = args.coeffs + c;
    coeffs[0] = scale;
    coeffs[args.channels] = -scale * invstd * (all.gx * inverse);
    coeffs[2 * args.channels] = bn[0];
    coeffs[3 * args.channels] = -scale * (all.g * inverse);
    args.dgamma[c] = all.gx;
    args.dbeta[c] = all.g;
}

template <class Record>
Status launch(void (*kernel)(Record), const Record& args) {
    return on(args.target, [&](cudaStream_t stream) { kernel<<<(args.channels + LANES - 1) / LANES, dim3(LANES, GROUPS), 0, stream>>>(args); });
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
