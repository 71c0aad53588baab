#include "bn_vectors.h"

#include <cmath>
#include <cstring>
#include <vector>

namespace fused_preact {
namespace {

// Chan: mean = mean + delta*n_t/n,  m2 = m2 + m2_t + delta^2*n*n_t/n_total
template <class A>
struct Merged {
    double count = 0, mean = 0, m2 = 0;

    void add(double n, double tile_mean, double tile_m2) {
        if (n == 0) return;
        const double total = count + n, delta = tile_mean - mean;
        mean += delta * n / total;
        m2 += tile_m2 + delta * delta * count * n / total;
        count = total;
    }
};

template <class A>
std::vector<Merged<A>> merged(const A* stats, int64_t tiles, int64_t c) {
    std::vector<Merged<A>> all(c);
    for (int64_t t = 0; t < tiles; ++t) {
        const A* tile = stats + t * 3 * c;
        if (c && tile[0] == 0) continue;  // a tile counts the same pixels in all channels
        for (int64_t i = 0; i < c; ++i) all[i].add(tile[i], tile[c + i], tile[2 * c + i]);
    }
    return all;
}

template <class A>
void merge(int64_t tiles, int64_t c, const void* stats, void* out) {
    A* o = static_cast<A*>(out);
    const auto all = merged(static_cast<const A*>(stats), tiles, c);
    for (int64_t i = 0; i < c; ++i) o[i] = A(all[i].count), o[c + i] = A(all[i].mean), o[2 * c + i] = A(all[i].m2);
}

template <class A>
void finalize(const BnFinalize& args) {
    const int64_t c = args.channels, p = args.bn_pitch;
    const A *gamma = static_cast<const A*>(args.gamma), *beta = static_cast<const A*>(args.beta);
    A *bn = static_cast<A*>(args.bn), *running_mean = static_cast<A*>(args.running_mean), *running_var = static_cast<A*>(args.running_var);
    const auto all = merged(static_cast<const A*>(args.stats), args.tiles, c);
    for (int64_t i = 0; i < c; ++i) {
        const double n = std::fmax(all[i].count, 1), m2 = all[i].m2, invstd = 1 / std::sqrt(m2 / n + args.eps);
        bn[i] = A(all[i].mean);
        bn[p + i] = A(invstd);
        bn[2 * p + i] = A(gamma ? invstd * gamma[i] : invstd);
        bn[3 * p + i] = beta ? beta[i] : A(0);
        bn[4 * p + i] = A(args.frozen ? 0 : 1 / n);
        if (running_mean) {
            running_mean[i] += A(args.momentum * (all[i].mean - running_mean[i]));
            running_var[i] += A(args.momentum * (m2 / std::fmax(n - 1, 1) - running_var[i]));
        }
    }
}

// dx = scale*(g - dbeta/M - xhat*dgamma/M) = a*g + b*(x - mean) + c
template <class A>
void coeffs(const BnCoeffs& args) {
    const int64_t c = args.channels, p = args.bn_pitch;
    const A *sums = static_cast<const A*>(args.sums), *bn = static_cast<const A*>(args.bn);
    const A *mean = bn, *invstd = bn + p, *scale = bn + 2 * p, *inverse = bn + 4 * p;
    A *out = static_cast<A*>(args.coeffs), *dgamma = static_cast<A*>(args.dgamma), *dbeta = static_cast<A*>(args.dbeta);
    std::vector<double> g(c), gx(c);
    for (int64_t t = 0; t < args.tiles; ++t)
        for (int64_t i = 0; i < c; ++i) g[i] += sums[t * 2 * c + i], gx[i] += sums[(t * 2 + 1) * c + i];
    for (int64_t i = 0; i < c; ++i) {
        dbeta[i] = A(g[i]);
        dgamma[i] = A(gx[i]);
        out[i] = scale[i];
        out[c + i] = A(-double(scale[i]) * invstd[i] * gx[i] * inverse[i]);
        out[2 * c + i] = mean[i];
        out[3 * c + i] = A(-double(scale[i]) * g[i] * inverse[i]);
    }
}

}  // namespace

void launch_bn_merge(bool wide, int64_t tiles, int64_t channels, const void* stats, void* out) {
    wide ? merge<double>(tiles, channels, stats, out) : merge<float>(tiles, channels, stats, out);
}

void launch_bn_finalize(const BnFinalize& args) { args.wide ? finalize<double>(args) : finalize<float>(args); }

void frozen_stats(bool wide, int64_t channels, const void* running_mean, const void* running_var, void* stats) {
    const size_t bytes = channels * (wide ? sizeof(double) : sizeof(float));
    char* to = static_cast<char*>(stats);
    for (int64_t i = 0; i < channels; ++i) wide ? static_cast<double*>(stats)[i] = 1 : static_cast<float*>(stats)[i] = 1;
    std::memcpy(to + bytes, running_mean, bytes);
    std::memcpy(to + 2 * bytes, running_var, bytes);
}

void launch_bn_coeffs(const BnCoeffs& args) { args.wide ? coeffs<double>(args) : coeffs<float>(args); }

}  // namespace fused_preact
