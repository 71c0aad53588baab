// Whole residual units: the launches of their layers one after the other on one stream, with what only travels between them in a workspace.
#pragma once
#include <vector>

#include "attempt.h"

namespace fused_preact::cuda {

struct BwdTiles {
    ConvTile dgrad;
    WgradTile wgrad;
};

// A convolution, and the tiles of its kernels: of both gradients together, and of each alone.
struct TiledConv {
    Conv conv;
    ConvTile fwd;
    BwdTiles both, alone;
    bool taps_last;  // of dweight
};

struct UnitLayer {
    TiledConv tiled;
    int tiles;  // of the statistics of its input, and of the sums of its gradient
    bool relu, norm, batch, update, cumulative;
    float momentum, eps;
};

struct Unit {
    Dtype dtype;
    std::vector<UnitLayer> layers;
    // The shortcut: x itself, or a convolution of x (shared: of the first activation).
    bool projected, shared;
    TiledConv projection;
    int y_tiles;
    // Of the norm of x: of its statistics, and of kernels without tiles.
    Grid stats, elements;
    // How the gradient of x is computed: docs/design.md.
    bool two_dgrads;

    // Channels of the norms before a layer.
    int64_t bns_width(size_t layer) const;
    int64_t bns_width() const { return bns_width(layers.size()); }
};

// A layer's tensors: forward has all, recomputation and backward only the weight.
struct LayerTensors {
    const float *gamma, *beta;
    const void* weight;
    float *running_mean, *running_var;
    int64_t* num_batches_tracked;
};

// y = x + F(x), its statistics, bns [5, bns_width] and the outputs of the inner layers (none: they stay in the workspace).
// again: bns are given and nothing else moves.
struct UnitFwd {
    Target target;
    bool again = false;
    const void* x = nullptr;
    const float* stats = nullptr;  // or null; [stats_tiles, 3, c]
    int stats_tiles = 0;
    const void* projection = nullptr;
    std::vector<LayerTensors> layers;
    std::vector<void*> inner;
    float* bns = nullptr;
    void* y = nullptr;
    float* y_stats = nullptr;  // or null
    void* workspace = nullptr;
};

// dx (null: not needed), and per layer dgamma and dbeta (both or neither) and dweight. inner: all of them, or none to recompute them.
struct UnitBwd {
    Target target;
    const void *dy = nullptr, *x = nullptr;
    const float* bns = nullptr;
    const void* projection = nullptr;
    std::vector<const void*> inner, weights;
    void *dx = nullptr, *dprojection = nullptr;
    std::vector<float*> dgamma, dbeta;
    std::vector<void*> dweight;
    void* workspace = nullptr;
};

// What the workspace holds.
struct Piece {
    const char* name;
    size_t offset, bytes;
};
std::vector<Piece> unit_fwd_workspace(const Unit&, bool keep);
std::vector<Piece> unit_bwd_workspace(const Unit&, bool kept);

// Why there is no such unit, in words, or null.
const char* impossible(const Unit&);

Failure launch_unit_fwd(const Unit&, const UnitFwd&);
Failure launch_unit_bwd(const Unit&, const UnitBwd&);

}  // namespace fused_preact::cuda
