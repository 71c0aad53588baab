// Of the shapes that a kernel of windows is compiled for, which is a tile's: for the host code of forward and dgrad.
#pragma once
#include "launch.cuh"
#include "window.cuh"

namespace fused_preact::cuda {

// body(shape, Type of geometry), if the tile has the shape and the convolution the geometry. summed: channels that are summed over.
template <bool TRANSPOSED, class Body>
struct WindowKernels {
    const Conv& conv;
    const ConvTile& tile;
    int summed;
    Body body;

    template <class S>
    bool is_3x3(S shape) const {
        return conv.dense_3x3() && is(shape, Type<Window3x3<S, TRANSPOSED>>{});
    }
    template <class S>
    bool is_any(S shape) const {
        return !conv.dense_3x3() && is(shape, Type<AnyWindow<S>>{});
    }

  private:
    template <class S, class Geometry>
    bool is(S shape, Geometry geometry) const {
        const bool same = tile.pixels == S::PIXELS && tile.slab == S::SLAB && tile.out == S::OUT && (summed > tile.slab) == S::MANY;
        if (same) body(shape, geometry);
        return same;
    }
};

}  // namespace fused_preact::cuda
