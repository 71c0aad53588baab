// Ways to reach memory, and the tensor cores.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int THREADS = 128;

struct Shape {
    int n, h;
    long long strides[3];
    const float* data;
};

__global__ void by_struct(const Shape shape, float* out) { out[threadIdx.x] = shape.data[threadIdx.x % shape.n] + shape.h * float(shape.strides[threadIdx.x % 3]); }

__global__ void vectors(const float4* in, float4* out) {
    float4 v = in[threadIdx.x];
    v.x = v.w + v.y;
    out[threadIdx.x] = v;
}

__global__ void local_array(const float* in, float* out, int steps) {
    float v[16];
    for (int j = 0; j < 16; ++j) v[j] = in[j] * threadIdx.x;
    float sum = 0;
    for (int j = 0; j < steps; ++j) sum += v[(j * 7 + threadIdx.x) & 15];
    out[threadIdx.x] = sum;
}

__global__ void static_and_dynamic(const float* in, float* out) {
    __shared__ float fixed[THREADS];
    __shared__ double wide[2];
    extern __shared__ float dynamic[];
    fixed[threadIdx.x] = in[threadIdx.x];
    dynamic[threadIdx.x] = 2 * in[threadIdx.x];
    if (threadIdx.x < 2) wide[threadIdx.x] = threadIdx.x + 0.5;
    __syncthreads();
    out[threadIdx.x] = fixed[THREADS - 1 - threadIdx.x] + dynamic[threadIdx.x ^ 1] + float(wide[threadIdx.x & 1]);
}

__global__ void atomics(const float* in, float* sums, int* counts) {
    atomicAdd(&sums[threadIdx.x % 4], in[threadIdx.x]);
    atomicMax(&counts[0], int(threadIdx.x));
    atomicMin(&counts[1], -int(threadIdx.x));
    atomicAdd(&counts[2], 1);
    atomicCAS(&counts[3], 0, 7);
}

// Rows apart by `pitch` floats: one float of each for a thread.
__global__ void strided(const float* in, float* out, int pitch) {
    __shared__ float s[THREADS * 32];
    s[threadIdx.x * pitch] = in[threadIdx.x * pitch];
    __syncthreads();
    out[threadIdx.x] = s[(threadIdx.x ^ 1) * pitch];
}

// A part of a copy comes from memory, the rest is zeros.
__global__ void copied_in_part(const float* in, float* out, int bytes) {
    __shared__ float4 s[THREADS];
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(s + threadIdx.x));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(in + 4 * threadIdx.x), "r"(threadIdx.x + 1 == THREADS ? bytes : 16));
    asm volatile("cp.async.wait_all;");
    reinterpret_cast<float4*>(out)[threadIdx.x] = s[threadIdx.x];
}

// out = in as 8x8 matrices of 16 bits in registers: matrix i, lane l.
template <bool TRANSPOSED>
__global__ void matrices(const uint4* in, uint32_t* out) {
    __shared__ uint4 s[32];
    s[threadIdx.x] = in[threadIdx.x];
    __syncwarp();
    uint32_t r[4];
    const uint32_t row = static_cast<uint32_t>(__cvta_generic_to_shared(s + threadIdx.x));
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row));
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row));
    for (int i = 0; i < 4; ++i) out[i * 32 + threadIdx.x] = r[i];
}

// d (16x8) = a (16xK) b (Kx8) + c, whole matrices in memory, by the PTX manual's fragments. Elements of 16 bits, two in a register.
#define MMA_16(name, type)                                                                                                                            \
    __global__ void name(const uint16_t* a, const uint16_t* b, const float* c, float* d) {                                                            \
        const int group = threadIdx.x / 4, in_group = threadIdx.x % 4;                                                                                \
        auto pair = [&](const uint16_t* p, int apart) { return uint32_t(p[0]) | uint32_t(p[apart]) << 16; };                                          \
        uint32_t ra[4], rb[2];                                                                                                                        \
        float r[4];                                                                                                                                   \
        for (int i = 0; i < 4; ++i) ra[i] = pair(a + (group + 8 * (i & 1)) * 16 + in_group * 2 + 8 * (i / 2), 1);                                     \
        for (int i = 0; i < 2; ++i) rb[i] = pair(b + (in_group * 2 + 8 * i) * 8 + group, 8);                                                          \
        for (int i = 0; i < 4; ++i) r[i] = c[(group + 8 * (i / 2)) * 8 + in_group * 2 + (i & 1)];                                                     \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"              \
                     : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3])                                                                                 \
                     : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));                                                       \
        for (int i = 0; i < 4; ++i) d[(group + 8 * (i / 2)) * 8 + in_group * 2 + (i & 1)] = r[i];                                                     \
    }
MMA_16(mma_bf16, "bf16")
MMA_16(mma_f16, "f16")

__global__ void mma_tf32(const uint32_t* a, const uint32_t* b, const float* c, float* d) {
    const int group = threadIdx.x / 4, in_group = threadIdx.x % 4;
    uint32_t ra[4], rb[2];
    float r[4];
    for (int i = 0; i < 4; ++i) ra[i] = a[(group + 8 * (i & 1)) * 8 + in_group + 4 * (i / 2)];
    for (int i = 0; i < 2; ++i) rb[i] = b[(in_group + 4 * i) * 8 + group];
    for (int i = 0; i < 4; ++i) r[i] = c[(group + 8 * (i / 2)) * 8 + in_group * 2 + (i & 1)];
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3])
                 : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
    for (int i = 0; i < 4; ++i) d[(group + 8 * (i / 2)) * 8 + in_group * 2 + (i & 1)] = r[i];
}

}  // namespace

// Each returns the CUDA error of its launch.
extern "C" {
int run_by_struct(const float* in, float* out) { return by_struct<<<1, THREADS>>>({5, 2, {10, 20, 30}, in}, out), cudaGetLastError(); }
int run_vectors(const float4* in, float4* out) { return vectors<<<1, THREADS>>>(in, out), cudaGetLastError(); }
int run_local_array(const float* in, float* out, int steps) { return local_array<<<1, THREADS>>>(in, out, steps), cudaGetLastError(); }
int run_dynamic(const float* in, float* out, int bytes) { return static_and_dynamic<<<1, THREADS, bytes>>>(in, out), cudaGetLastError(); }
int allow_dynamic(int bytes) {
    const int error = cudaFuncSetAttribute(static_and_dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    cudaGetLastError();
    return error;
}
int run_atomics(const float* in, float* sums, int* counts) { return atomics<<<2, THREADS>>>(in, sums, counts), cudaGetLastError(); }
int run_strided(const float* in, float* out, int pitch) { return strided<<<1, THREADS>>>(in, out, pitch), cudaGetLastError(); }
int run_copied_in_part(const float* in, float* out, int bytes) { return copied_in_part<<<1, THREADS>>>(in, out, bytes), cudaGetLastError(); }
int run_matrices(const uint4* in, uint32_t* out, int transposed) { return (transposed ? matrices<true> : matrices<false>)<<<1, 32>>>(in, out), cudaGetLastError(); }
int run_mma_bf16(const uint16_t* a, const uint16_t* b, const float* c, float* d) { return mma_bf16<<<1, 32>>>(a, b, c, d), cudaGetLastError(); }
int run_mma_f16(const uint16_t* a, const uint16_t* b, const float* c, float* d) { return mma_f16<<<1, 32>>>(a, b, c, d), cudaGetLastError(); }
int run_mma_tf32(const uint32_t* a, const uint32_t* b, const float* c, float* d) { return mma_tf32<<<1, 32>>>(a, b, c, d), cudaGetLastError(); }
int run_grid(const float4* in, float4* out, int blocks, int threads) { return vectors<<<blocks, threads>>>(in, out), cudaGetLastError(); }
}
