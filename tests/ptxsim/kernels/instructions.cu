// Small kernels, one for an instruction or a few: out[i] from a[i], b[i], c[i].
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace {

using u32 = uint32_t;
using s32 = int32_t;
using u64 = unsigned long long;
using s64 = long long;
using bf = __nv_bfloat16;

#define THREE(name, text, T)                                                                \
    __device__ u32 name(T a, T b, T c) {                                                    \
        u32 d;                                                                              \
        asm volatile(text " %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));           \
        return d;                                                                           \
    }
#define TWO(name, text, T)                                                                  \
    __device__ u32 name(T a, T b) {                                                         \
        u32 d;                                                                              \
        asm volatile(text " %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));                       \
        return d;                                                                           \
    }
TWO(shl, "shl.b32", u32)
TWO(shr, "shr.u32", u32)
TWO(sar, "shr.s32", u32)
THREE(permute, "prmt.b32", u32)
THREE(extract, "bfe.u32", u32)
THREE(extract_signed, "bfe.s32", u32)

__device__ u32 insert(u32 a, u32 b, u32 at, u32 length) {
    u32 d;
    asm volatile("bfi.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(at), "r"(length));
    return d;
}

__device__ u32 majority(u32 a, u32 b, u32 c) {
    u32 d;
    asm volatile("lop3.b32 %0, %1, %2, %3, 0xE8;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

__device__ u32 relu_pair(float a, float b) {
    u32 d;
    asm volatile("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(a), "f"(b));
    return d;
}

__device__ u32 tf32(float a) {
    u32 d;
    asm volatile("cvt.rna.tf32.f32 %0, %1;" : "=r"(d) : "f"(a));
    return d;
}

__device__ float max_nan(float a, float b) {
    float d;
    asm volatile("max.NaN.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
    return d;
}

__device__ u32 bits(bf a) { return __bfloat16_as_ushort(a); }
__device__ u32 bits(__half a) { return __half_as_ushort(a); }
__device__ bf bfloat(float a) { return __float2bfloat16(a); }
__device__ __half half_of(float a) { return __float2half(a); }

#define OP(name, In, Out, expression)                                                                     \
    __global__ void name(const In* pa, const In* pb, const In* pc, Out* out, int n) {                     \
        const int i = blockIdx.x * blockDim.x + threadIdx.x;                                              \
        if (i >= n) return;                                                                               \
        const In a = pa[i], b = pb[i], c = pc[i];                                                         \
        (void)a, (void)b, (void)c;                                                                        \
        out[i] = expression;                                                                              \
    }

// name, type of a, b and c, type of out, expression
#define OPERATIONS(OP)                                                                                                                   \
    OP(u32_arithmetic, u32, u32, a + b - c * a)                                                                                          \
    OP(u32_mulhi, u32, u32, __umulhi(a, b))                                                                                              \
    OP(s32_mulhi, s32, s32, __mulhi(a, b))                                                                                               \
    OP(u32_wide, u32, u64, u64(a) * b + c)                                                                                               \
    OP(s32_wide, s32, s64, s64(a) * b)                                                                                                   \
    OP(u64_mulhi, u64, u64, __umul64hi(a, b))                                                                                            \
    OP(u64_arithmetic, u64, u64, a * b + c - (a >> 7) + (b << 9))                                                                        \
    OP(u32_div, u32, u32, a / (b | 1) + a % (c | 1))                                                                                     \
    OP(s32_div, s32, s32, a / (b | 1) - a % (c | 1))                                                                                     \
    OP(u32_div7, u32, u32, a / 7)                                                                                                        \
    OP(s32_min, s32, s32, min(a, max(b, c)))                                                                                             \
    OP(u32_min, u32, u32, min(a, max(b, c)))                                                                                             \
    OP(s32_abs, s32, s32, abs(a) - (-b))                                                                                                 \
    OP(u32_shl, u32, u32, shl(a, b & 63))                                                                                                \
    OP(u32_shr, u32, u32, shr(a, b & 63))                                                                                                \
    OP(s32_shr, u32, u32, sar(a, b & 63))                                                                                                \
    OP(u32_logic, u32, u32, ((a & b) | (~c)) ^ (a | c))                                                                                  \
    OP(u32_count, u32, u32, __popc(a) + 100 * __clz(b & c & (b >> 9)))                                                                   \
    OP(u64_count, u64, u32, __popcll(a) + 100 * __clzll(b & c & (b >> 9)))                                                               \
    OP(u32_brev, u32, u32, __brev(a))                                                                                                    \
    OP(u32_permute, u32, u32, permute(a, b, c))                                                                                          \
    OP(u32_funnel, u32, u32, __funnelshift_l(a, b, c) ^ __funnelshift_r(a, b, c))                                                        \
    OP(u32_funnel_clamp, u32, u32, __funnelshift_lc(a, b, c & 63) ^ __funnelshift_rc(a, b, c & 63))                                      \
    OP(u32_lop3, u32, u32, majority(a, b, c))                                                                                            \
    OP(u32_extract, u32, u32, extract(a, b & 63, c & 63))                                                                                \
    OP(s32_extract, u32, u32, extract_signed(a, b & 63, c & 63))                                                                         \
    OP(u32_insert, u32, u32, insert(a, b, c & 31, c >> 8 & 31))                                                                          \
    OP(s32_select, s32, s32, a < b ? c : (a == c || b > c) ? a : b)                                                                      \
    OP(u32_narrow, u32, u32, uint8_t(a) + uint32_t(int8_t(b)) + uint16_t(c) + uint32_t(int16_t(a)))                                      \
    OP(f32_fma, float, float, fmaf(a, b, c))                                                                                             \
    OP(f32_quotient, float, float, a / b)                                                                                                \
    OP(f32_min, float, float, fminf(a, fmaxf(b, c)))                                                                                     \
    OP(f32_max_nan, float, float, max_nan(a, b))                                                                                         \
    OP(f32_copysign, float, float, copysignf(a, b))                                                                                      \
    OP(f32_abs, float, float, fabsf(a) - (-b))                                                                                           \
    OP(f32_sqrt, float, float, sqrtf(fabsf(a)))                                                                                          \
    OP(f32_rsqrt, float, float, rsqrtf(fabsf(a) + 1))                                                                                    \
    OP(f32_exp, float, float, __expf(a))                                                                                                 \
    OP(f32_floor, float, float, floorf(a) + 100 * ceilf(b) + 10000 * truncf(c))                                                          \
    OP(f32_round, float, float, rintf(a * 4))                                                                                            \
    OP(f32_compare, float, u32, (a < b) | (a <= b) << 1 | (a == b) << 2 | (a != b) << 3 | !(a < b) << 4 | !(a >= b) << 5 | (c != c) << 6) \
    OP(f32_to_s32, float, s32, int(a * 1e9f) + __float2int_rn(b) * 3 + __float2int_rd(c) * 5)                                            \
    OP(f32_to_u32, float, u32, static_cast<u32>(a * 1e9f))                                                                               \
    OP(s32_to_f32, s32, float, float(a) + float(u32(b)))                                                                                 \
    OP(f64_arithmetic, double, double, fma(a, b, c) - a / b)                                                                             \
    OP(f32_to_f64, float, double, double(a) * 3 + b)                                                                                     \
    OP(f64_to_f32, double, float, float(a))                                                                                              \
    OP(f32_to_bf16, float, u32, bits(bfloat(a)))                                                                                         \
    OP(f32_to_f16, float, u32, bits(half_of(a)))                                                                                         \
    OP(f32_to_tf32, float, u32, tf32(a))                                                                                                 \
    OP(f32_relu_pair, float, u32, relu_pair(a, b))                                                                                       \
    OP(bf16_fma, float, u32, bits(__hfma(bfloat(a), bfloat(b), bfloat(c))))                                                              \
    OP(f16_fma, float, u32, bits(__hfma(half_of(a), half_of(b), half_of(c))))                                                            \
    OP(f16_arithmetic, float, u32, bits(__hsub(__hmul(half_of(a), half_of(b)), half_of(c))))                                             \
    OP(bf16_max, float, u32, bits(__hmax(bfloat(a), __hmin(bfloat(b), bfloat(c)))))                                                      \
    OP(bf16_pair, float, float, __low2float(__hfma2(__floats2bfloat162_rn(a, b), __floats2bfloat162_rn(b, c), __floats2bfloat162_rn(c, a)))) \
    OP(warp_shuffle, u32, u32, __shfl_sync(~0u, a, b & 31) + __shfl_up_sync(~0u, a, 3) * 3 + __shfl_down_sync(~0u, a, 5) * 5)             \
    OP(warp_butterfly, u32, u32, __shfl_xor_sync(~0u, a, 5, 8) + __shfl_sync(~0u, a, b, 16) * 3)                                         \
    OP(warp_vote, u32, u32, __ballot_sync(~0u, a & 1) + __any_sync(~0u, b == 0) + 2 * __all_sync(~0u, c & 1))                            \
    OP(warp_reduce, u32, u32, __reduce_add_sync(~0u, a) ^ __reduce_max_sync(~0u, b) ^ __reduce_xor_sync(~0u, c))                         \
    OP(warp_reduce_signed, s32, s32, __reduce_min_sync(~0u, a) ^ __reduce_max_sync(~0u, b))                                              \
    OP(block_count, u32, u32, __syncthreads_count(a & 1) + 1000 * (__syncthreads_and(b & 1) != 0) + 2000 * (__syncthreads_or(c & 1) != 0))

OPERATIONS(OP)

using Kernel = void (*)(const void*, const void*, const void*, void*, int);
struct Named {
    const char* name;
    Kernel kernel;
};
#define NAMED(name, In, Out, expression) {#name, reinterpret_cast<Kernel>(name)},
const Named KERNELS[] = {OPERATIONS(NAMED)};

}  // namespace

// n is a multiple of 64. The CUDA error, or -1 for an unknown name.
extern "C" int run(const char* name, const void* a, const void* b, const void* c, void* out, int n) {
    for (const Named& named : KERNELS)
        if (strcmp(named.name, name) == 0) {
            named.kernel<<<n / 64, 64>>>(a, b, c, out, n);
            return cudaGetLastError();
        }
    return -1;
}
