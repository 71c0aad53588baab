// Whole residual units: their layers one after the other in one call, with what only travels between them in the workspace.
#pragma once
#include <utility>
#include <vector>

#include "records.h"

namespace fused_preact {

struct UnitLayer {
    Conv conv;
    bool relu, norm, batch, update;
    double momentum;  // negative: cumulative average
    double eps;
};

struct Unit {
    Dtype dtype;
    std::vector<UnitLayer> layers;
    // The shortcut: x itself, or a convolution of x (shared: of the first activation).
    bool projected, shared;
    Conv projection;
    // Statistics tiles of x and of y.
    int64_t x_tiles, y_tiles;

    // Channels of all norms together, and those before layer i's.
    int64_t bns_width(size_t layer) const;
    int64_t bns_width() const { return bns_width(layers.size()); }
};

// A layer's tensors: forward has all, recomputation and backward only the weight.
struct LayerTensors {
    const void *gamma, *beta, *weight;
    void *running_mean, *running_var;
    int64_t* num_batches_tracked;
};

// y = x + F(x), its statistics, bns [5, bns_width] and the outputs of the inner layers (null: nobody needs them).
// again: bns are given and nothing else moves.
struct UnitFwd {
    int threads;
    bool again;
    const void *x, *stats, *projection;
    std::vector<LayerTensors> layers;
    std::vector<void*> inner;
    void *bns, *y, *y_stats;
    Workspace workspace;
};

// dx (null: not needed), and per layer dgamma and dbeta (both or neither) and dweight. inner: all of them, or none to recompute them.
struct UnitBwd {
    int threads;
    const void *dy, *x, *bns, *projection;
    std::vector<const void*> inner, weights;
    void *dx, *dprojection;
    std::vector<void*> dgamma, dbeta, dweight;
    Workspace workspace;
};

// How often the units of this process launched each kernel.
std::vector<std::pair<const char*, int64_t>> unit_launches();

Status launch_unit_fwd(const Unit&, const UnitFwd&);
Status launch_unit_bwd(const Unit&, const UnitBwd&);

}  // namespace fused_preact
