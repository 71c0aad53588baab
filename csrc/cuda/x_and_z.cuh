// A tile of x in shared memory and z beside it, where a kernel computes both gradients: z is dweight's operand, and tells where g stops.
#pragma once
#include "prologue.cuh"
#include "records.h"

namespace fused_preact::cuda {

// x of a tile into shared memory, and z beside it; zeros beyond its pixels and channels.
template <class T, class S>
__device__ inline void fill_x_and_z(char* x, char* z, const BnReluConv2dBwd& args, const Outputs<S>& outputs, int channel) {
    using Thread = Walk<S::THREADS, S::PIXELS, S::Out::CHUNKS>;
    const Thread thread;
    const bool inside = channel < args.conv.c;
    const int at = S::Out::at(thread.row, thread.chunk);
    with_prologue(prologue_of(args.bn, args.relu), [&](auto p) {
        const Activation<T, p()> source(reloaded(args.bn), args.bn_pitch, inside ? channel : 0);
        each_chunk<Thread, 2>(
            thread, source, static_cast<const T*>(args.x) + outputs.at(thread, channel), outputs.template step<Thread>(), inside && outputs.all(),
            [&](int row) { return inside && outputs.has(row); },
            [&](int row, uint4 raw, bool has) {
                *reinterpret_cast<uint4*>(x + at + row * S::Out::BYTES) = raw;
                *reinterpret_cast<uint4*>(z + at + row * S::Out::BYTES) = has ? source.chunk(raw) : uint4{};
            });
    });
}

}  // namespace fused_preact::cuda
