// Memory of large activations, kept when they die and given to the next of their size.
//
// malloc gives large blocks back to the system, and every training step would fault them in and have them zeroed again: with tensors of
// megabytes that takes as long as the arithmetic (docs/performance.md). Blocks of 2 MiB and more ask for huge pages.
#pragma once
#include <cstddef>

namespace fused_preact {

struct PoolBlock {
    void* data;  // aligned to a cache line
    size_t size;
};

// At least `size` bytes, or data = null if there is no memory.
PoolBlock pool_take(size_t size);
void pool_give(PoolBlock block);

// Bytes in use, and bytes kept for the next.
struct PoolUse {
    size_t used, kept;
};
PoolUse pool_use();

// Give what is kept back to the system.
void pool_release();

}  // namespace fused_preact
