// Kernels with a planted fault each, and without it. A fault is reported at the line that ends with its name.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int THREADS = 64, WARP = 32;

__device__ void copy_async(float* to, const float* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from));
}

template <bool FAULTY>
__global__ void read_before_barrier(const float* in, float* out, unsigned*) {
    __shared__ float s[THREADS];
    s[threadIdx.x] = in[threadIdx.x];
    if (!FAULTY) __syncthreads();
    out[threadIdx.x] = s[THREADS - 1 - threadIdx.x];  // fault: read_before_barrier
}

template <bool FAULTY>
__global__ void overwrite_before_barrier(const float* in, float* out, unsigned*) {
    __shared__ float s[THREADS];
    s[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    const float first = s[THREADS - 1 - threadIdx.x];
    if (!FAULTY) __syncthreads();
    s[threadIdx.x] = first * 2;  // fault: overwrite_before_barrier
    __syncthreads();
    out[threadIdx.x] = s[THREADS - 1 - threadIdx.x];
}

template <bool FAULTY>
__global__ void read_before_warp_barrier(const float* in, float* out, unsigned*) {
    __shared__ float s[THREADS];
    s[threadIdx.x] = in[threadIdx.x];
    if (!FAULTY) __syncwarp();
    out[threadIdx.x] = s[threadIdx.x ^ 1];  // fault: read_before_warp_barrier
}

template <bool FAULTY>
__global__ void divergent_barrier(const float* in, float* out, unsigned*) {
    if (!FAULTY || threadIdx.x < WARP) {
        out[threadIdx.x] = in[threadIdx.x];
        __syncthreads();  // fault: divergent_barrier
    }
}

template <bool FAULTY>
__global__ void divergent_shuffle(const float* in, float* out, unsigned*) {
    float v = in[threadIdx.x];
    if (!FAULTY || threadIdx.x % WARP < 16) v += __shfl_xor_sync(~0u, v, 1);  // fault: divergent_shuffle
    out[threadIdx.x] = v;
}

template <bool FAULTY>
__global__ void shuffle_from_absent_lane(const float* in, float* out, unsigned*) {
    float v = in[threadIdx.x];
    const unsigned lanes = FAULTY ? 0xffffu : ~0u;
    if (lanes >> threadIdx.x % WARP & 1) v += __shfl_xor_sync(lanes, v, 16);  // fault: shuffle_from_absent_lane
    out[threadIdx.x] = v;
}

template <bool FAULTY>
__global__ void shared_out_of_bounds(const float* in, float* out, unsigned*) {
    __shared__ float s[THREADS];
    s[threadIdx.x + (FAULTY ? 1 : 0)] = in[threadIdx.x];  // fault: shared_out_of_bounds
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x ^ 1];
}

template <bool FAULTY>
__global__ void global_out_of_bounds(const float* in, float* out, unsigned*) {
    out[threadIdx.x] = in[threadIdx.x + (FAULTY ? 1 : 0)];  // fault: global_out_of_bounds
}

template <bool FAULTY>
__global__ void write_to_input(const float* in, float* out, unsigned*) {
    (FAULTY ? const_cast<float*>(in) : out)[threadIdx.x] = 1;  // fault: write_to_input
}

template <bool FAULTY>
__global__ void copy_not_awaited(const float* in, float* out, unsigned*) {
    __shared__ float s[THREADS];
    copy_async(s + threadIdx.x, in + threadIdx.x);
    asm volatile("cp.async.commit_group;");
    if (!FAULTY) asm volatile("cp.async.wait_group 0;");
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x ^ 1];  // fault: copy_not_awaited
    asm volatile("cp.async.wait_all;");
}

// The older of two groups has been waited for, what is read is in the younger.
template <bool FAULTY>
__global__ void younger_copy_not_awaited(const float* in, float* out, unsigned*) {
    __shared__ float s[2 * THREADS];
    for (int group = 0; group < 2; ++group) {
        copy_async(s + group * THREADS + threadIdx.x, in + threadIdx.x);
        asm volatile("cp.async.commit_group;");
    }
    asm volatile("cp.async.wait_group 1;");
    __syncthreads();
    out[threadIdx.x] = s[(FAULTY ? THREADS : 0) + (threadIdx.x ^ 1)];  // fault: younger_copy_not_awaited
    asm volatile("cp.async.wait_all;");
}

template <bool FAULTY>
__global__ void uninitialised(const float* in, float* out, unsigned*) {
    __shared__ float s[THREADS];
    if (!FAULTY || threadIdx.x) s[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x ^ 1];  // fault: uninitialised
}

template <bool FAULTY>
__global__ void misaligned(const float* in, float* out, unsigned*) {
    if (threadIdx.x >= THREADS / 4 - 1) return;
    const float4 v = *reinterpret_cast<const float4*>(in + threadIdx.x * 4 + (FAULTY ? 1 : 0));  // fault: misaligned
    out[threadIdx.x] = v.x + v.w;
}

template <bool FAULTY>
__global__ void race_between_blocks(const float* in, float* out, unsigned*) {
    out[FAULTY ? threadIdx.x : blockIdx.x * blockDim.x + threadIdx.x] = in[threadIdx.x] + blockIdx.x;  // fault: race_between_blocks
}

__device__ float sum_of_blocks(const float* written) {
    float sum = 0;
    for (int block = 0; block < gridDim.x; ++block) sum += written[block * blockDim.x + threadIdx.x];
    return sum;
}

// The last block to arrive adds up what all have written: right only if each has fenced before it takes its ticket.
template <bool FAULTY>
__global__ void last_block(const float* in, float* out, unsigned* ticket) {
    __shared__ bool last;
    out[THREADS + blockIdx.x * blockDim.x + threadIdx.x] = in[threadIdx.x] + blockIdx.x;
    if (!FAULTY) __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        if (!FAULTY) __threadfence();
        last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    out[threadIdx.x] = sum_of_blocks(out + THREADS);  // fault: last_block
}

// With a fence, but before the other threads of the block are known to have written.
template <bool FAULTY>
__global__ void ticket_before_barrier(const float* in, float* out, unsigned* ticket) {
    __shared__ bool last;
    out[THREADS + blockIdx.x * blockDim.x + threadIdx.x] = in[threadIdx.x] + blockIdx.x;
    if (!FAULTY) __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    out[threadIdx.x] = sum_of_blocks(out + THREADS);  // fault: ticket_before_barrier
}

using Kernel = void (*)(const float*, float*, unsigned*);

struct Pair {
    const char* name;
    Kernel correct, faulty;
    int blocks;
};

#define PAIR(name, blocks) Pair{#name, name<false>, name<true>, blocks}

const Pair PAIRS[] = {
    PAIR(read_before_barrier, 1),      PAIR(overwrite_before_barrier, 1), PAIR(read_before_warp_barrier, 1), PAIR(divergent_barrier, 1),
    PAIR(divergent_shuffle, 1),        PAIR(shuffle_from_absent_lane, 1), PAIR(shared_out_of_bounds, 1),     PAIR(global_out_of_bounds, 1),
    PAIR(write_to_input, 1),           PAIR(copy_not_awaited, 1),         PAIR(younger_copy_not_awaited, 1), PAIR(uninitialised, 1),
    PAIR(misaligned, 1),               PAIR(race_between_blocks, 3),      PAIR(last_block, 3),               PAIR(ticket_before_barrier, 3),
};

}  // namespace

// in: 64 floats, out: 256, ticket: 0. The CUDA error, or -1 for an unknown name.
extern "C" int run(const char* name, int faulty, const float* in, float* out, unsigned* ticket) {
    for (const Pair& pair : PAIRS)
        if (strcmp(pair.name, name) == 0) {
            (faulty ? pair.faulty : pair.correct)<<<pair.blocks, THREADS>>>(in, out, ticket);
            return cudaGetLastError();
        }
    return -1;
}
