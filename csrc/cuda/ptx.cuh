// Instructions that C++ has no words for.
#pragma once
#include "chunk.cuh"

namespace fused_preact::cuda {

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// The same pointer: what is loaded from it is loaded again each time, not kept in registers from one tile to the next.
template <class T>
__device__ inline T* reloaded(T* p) {
    size_t address = __cvta_generic_to_global(p);
    asm volatile("" : "+l"(address));
    return static_cast<T*>(__cvta_global_to_generic(address));
}

// 16 bytes in one instruction, which the compiler takes apart where they were put together from words.
__device__ inline void store_global(void* to, uint4 v) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// 16 bytes on their way into shared memory.
__device__ inline void copy_async(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
// Zeros if not `inside`.
__device__ inline void copy_async(void* to, const void* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
// Until all copies that the thread started have arrived.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four 8x8 matrices of 16-bit values, their rows at the addresses of 8 lanes each.
__device__ inline void load_matrices(uint32_t (&m)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(row) : "memory");
}
__device__ inline void load_transposed(uint32_t (&m)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(row)
                 : "memory");
}

// A word so many bytes beyond an address in shared memory.
template <int OFFSET>
__device__ inline uint32_t load_word(uint32_t at) {
    uint32_t word;
    asm volatile("ld.shared.b32 %0, [%1 + %2];" : "=r"(word) : "r"(at), "n"(OFFSET) : "memory");
    return word;
}

// mma's second operand, of 16 columns, whose rows are what is summed over.
template <class T, class Layout>
__device__ inline void load_summed(uint32_t (&b)[4], uint32_t at) {
    if constexpr (sizeof(T) == 2)
        load_transposed(b, at);
    else
        b[0] = load_word<0>(at), b[1] = load_word<4 * Layout::BYTES>(at), b[2] = load_word<32>(at), b[3] = load_word<4 * Layout::BYTES + 32>(at);
}

// d += a*b in float32, of 32 bytes a row of a and a column of b: 16x16 by 16x8 of 16 bits, 16x8 by 8x8 of float32 as tf32.
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, f16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A chunk as the tensor cores take it. Of a float32 they ignore the low 13 bits: it is rounded to tf32 before, because cut off all products would
// err to one side.
template <class T>
__device__ inline uint4 operand(uint4 chunk, T) {
    return chunk;
}
__device__ inline uint4 operand(uint4 chunk, float) {
    uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(words[i]) : "f"(__uint_as_float(words[i])));
    return {words[0], words[1], words[2], words[3]};
}

// 1 twice.
__device__ inline uint32_t ones(bf16) { return 0x3f803f80u; }
__device__ inline uint32_t ones(f16) { return 0x3c003c00u; }

}  // namespace fused_preact::cuda
