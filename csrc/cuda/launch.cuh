// What all launchers share.
#pragma once
#include <cuda_runtime.h>

#include "chunk.cuh"
#include "records.h"

namespace fused_preact::cuda {

inline Status status_of(cudaError_t error) { return {error == cudaSuccess ? nullptr : cudaGetErrorString(error)}; }

// body(stream) on the target's device; the caller's device stays current.
template <class Body>
Status on(const Target& target, Body&& body) {
    int before = 0;
    cudaError_t error = cudaGetDevice(&before);
    if (error == cudaSuccess && before != target.device) error = cudaSetDevice(target.device);
    if (error != cudaSuccess) return status_of(error);
    body(reinterpret_cast<cudaStream_t>(target.stream));
    error = cudaGetLastError();
    if (before != target.device) cudaSetDevice(before);
    return status_of(error);
}

// body(T{}) with the type of activations.
template <class Body>
auto by_dtype(Dtype dtype, Body&& body) {
    switch (dtype) {
        case Dtype::float32:
            return body(float{});
        case Dtype::bfloat16:
            return body(bf16{});
        default:
            return body(f16{});
    }
}

template <class T>
dim3 blocks_of(const Elementwise& args) {
    const int chunks = args.channels / PER_CHUNK<T>;
    return dim3((chunks + args.grid.columns - 1) / args.grid.columns, args.grid.blocks);
}

inline int threads_of(const Grid& grid) { return grid.columns * grid.rows; }

}  // namespace fused_preact::cuda
