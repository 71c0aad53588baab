// What all launchers share.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <type_traits>

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

// body(T{}, N) with the type of activations and how many channels a thread takes at once.
template <class Body>
void by_dtype(Dtype dtype, int channels, Body&& body) {
    auto of = [&](auto t) {
        constexpr int CHUNK = PER_CHUNK<decltype(t)>;
        if (channels % CHUNK == 0)
            body(t, std::integral_constant<int, CHUNK>{});
        else
            body(t, std::integral_constant<int, 1>{});
    };
    if (dtype == Dtype::float32)
        of(float{});
    else if (dtype == Dtype::bfloat16)
        of(bf16{});
    else
        of(f16{});
}

// body(T{}, stream) -> Status, with a type of 16 bits.
template <class Body>
Status on_halves(const Target& target, Dtype dtype, Body&& body) {
    Status status;
    const Status launched = on(target, [&](cudaStream_t stream) { status = dtype == Dtype::bfloat16 ? body(bf16{}, stream) : body(f16{}, stream); });
    return status.error ? status : launched;
}

// The same with any type of activations.
template <class Body>
Status on_dtype(const Target& target, Dtype dtype, Body&& body) {
    if (dtype != Dtype::float32) return on_halves(target, dtype, body);
    Status status;
    const Status launched = on(target, [&](cudaStream_t stream) { status = body(float{}, stream); });
    return status.error ? status : launched;
}

// A type as a value.
template <class T>
struct Type {
    using type = T;
};

// A kernel's limit of dynamic shared memory, raised once on each device to all that the device has.
class SharedMemoryLimit {
  public:
    template <class Kernel>
    Status raise(Kernel* kernel, int device) {
        const uint64_t own = device < 64 ? uint64_t(1) << device : 0;
        if (raised_ & own) return {};
        int most = 0;
        cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
        if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
        if (error == cudaSuccess) raised_ |= own;
        return status_of(error);
    }

  private:
    std::atomic<uint64_t> raised_{0};
};

// Launches a kernel with so many bytes of shared memory, which must be what it takes: the host has a table of its own.
template <class... Args>
Status launch_with_memory(void (*kernel)(Args...), SharedMemoryLimit& limit, int device, dim3 blocks, dim3 threads, int bytes, int taken, cudaStream_t stream,
                          const std::decay_t<Args>&... args) {
    if (bytes != taken) return {"the tile's shared memory is not what the kernel takes"};
    const Status status = limit.raise(kernel, device);
    if (!status.error) kernel<<<blocks, threads, bytes, stream>>>(args...);
    return status;
}

}  // namespace fused_preact::cuda
