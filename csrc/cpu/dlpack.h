// The part of the DLPack ABI by which a tensor library takes over memory of ours (https://dmlc.github.io/dlpack).
#pragma once
#include <cstdint>

namespace fused_preact::dlpack {

enum DeviceType : int32_t { cpu = 1 };
enum TypeCode : uint8_t { floating = 2, bfloat = 4 };

struct Device {
    DeviceType type;
    int32_t id;
};
struct DataType {
    TypeCode code;
    uint8_t bits;
    uint16_t lanes;
};
struct Tensor {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};
struct ManagedTensor {
    Tensor tensor;
    void* context;
    void (*deleter)(ManagedTensor*);
};

// The name of a capsule that nobody has taken over.
constexpr const char* CAPSULE = "dltensor";

}  // namespace fused_preact::dlpack
