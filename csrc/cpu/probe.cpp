// What the machine can do in this minute: a loop of independent multiply-adds on registers and L1, on all threads at once.
#include <omp.h>

#include "kernels.h"
#include "mac.h"

namespace fused_preact::FUSED_PREACT_ISA {
namespace {

constexpr int STEPS = 64, PITCH = 64;

template <class E>
double probe(int threads, double seconds) {
    using A = wide<E>;
    constexpr int W = LANES<A>;
    int64_t total = 0;
    double elapsed = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total) reduction(max : elapsed)
    {
        alignas(64) E rows[ROWS * PITCH * 2], weights[STEPS * PAIR<E> * COLUMNS * W];
        A tile[ROWS * COLUMNS * W];
        __builtin_memset(rows, 0, sizeof rows);
        __builtin_memset(weights, 0, sizeof weights);
        int32_t offsets[ROWS];
        for (int r = 0; r < ROWS; ++r) offsets[r] = r * PITCH;
        const Segment segment{0, STEPS};
        Prefetch nothing;
        const double start = omp_get_wtime();
        int64_t blocks = 0;
        do {
            for (int i = 0; i < 64; ++i, ++blocks) {
                rows_block<E, COLUMNS>(rows, offsets, &segment, 1, weights, tile, true, nothing);
                // The compiler can't know what they hold, nor that nobody reads the result.
                asm volatile("" ::"r"(rows), "r"(weights), "r"(tile) : "memory");
            }
            elapsed = omp_get_wtime() - start;
        } while (elapsed < seconds);
        total = blocks * ROWS * COLUMNS * W * STEPS * PAIR<E>;
    }
    return double(total) / elapsed;
}

}  // namespace

double launch_probe(Dtype dtype, int threads, double seconds) {
    if (dtype == Dtype::float64) return probe<double>(threads, seconds);
    return dtype == Dtype::float32 ? probe<float>(threads, seconds) : probe<paired>(threads, seconds);
}

}  // namespace fused_preact::FUSED_PREACT_ISA
