"""The CUDA kernels of a norm in the simulator: as accurate as eager, no race, no more traffic than the contract's minimum and a little."""

import pytest
import torch

from fused_preact.backends.cuda.tiles import Grid
from fused_preact.ops.library import Operators
from tests.cuda.kernels import DTYPES, nan, needs_simulator, run
from tests.testing.cases import name_of
from tests.testing.numerics import assert_as_accurate, drawn

pytestmark = needs_simulator

# Channels, images, height, width: a chunk or many across, tails of rows, more tiles than pixels in one, fewer pixels than threads, channels
# that do not come in chunks.
SHAPES = [
    (16, 2, 16, 16),
    (8, 1, 7, 5),
    (64, 2, 9, 11),
    (24, 3, 5, 13),
    (272, 1, 9, 7),
    (40, 2, 1, 1),
    (16, 2, 65, 64),
    (7, 2, 9, 5),
    (67, 2, 31, 32),
]
# Of each launch: blocks, one fewer than there are tiles.
BLOCKS = 5
EAGER = Operators("eager")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def grid(channels, dtype, blocks):
    """Up to 32 threads across, the rest of 256 down."""
    chunk = 16 // dtype.itemsize
    columns = min(32, channels // chunk if channels % chunk == 0 else channels)
    return Grid(columns, 256 // columns, blocks)


class Given:
    """Tensors of one activation, (pixels, channels) as the kernels see it and NCHW for the reference."""

    def __init__(self, shape, dtype, offset=0.0, blocks=BLOCKS):
        c, *rest = shape
        torch.manual_seed(0)
        self.c, self.dtype, self.pixels = c, dtype, rest[0] * rest[1] * rest[2]
        self.gamma, self.beta = torch.rand(c) + 0.5, torch.randn(c)
        self.x = drawn((rest[0], c, *rest[1:]), torch.ones(c), torch.zeros(c), offset, dtype).contiguous(memory_format=torch.channels_last)
        self.dz, self.add = (torch.randn(self.x.shape).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2))
        self.tiles = blocks + 1
        self.common = {"grid": grid(c, dtype, blocks), "dtype": dtype, "pixels": self.pixels, "channels": c, "tiles": self.tiles}
        self.bn = EAGER.bn_finalize(EAGER.bn_stats(self.x), self.gamma, self.beta, 1e-5, False)

    def rows(self, t):
        return t.permute(0, 2, 3, 1).reshape(self.pixels, self.c)

    def empty(self):
        return nan(self.pixels, self.c, dtype=self.dtype)

    def nchw(self, t):
        return t.view(self.x.size(0), *self.x.shape[2:], self.c).permute(0, 3, 1, 2)


def test_the_stats_of_a_launch_merge_to_those_of_all():
    given = Given((16, 2, 16, 16), torch.float32)
    stats = nan(given.tiles, 3, 16)
    run("bn_stats", x=given.rows(given.x), stats=stats, **given.common)
    assert (stats[:, 0].sum(0) == given.pixels).all()


@dtypes
@shapes
@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0])
def test_bn_stats(shape, dtype, offset):
    # Beside a mean of 1000 the means of small tiles, in float32, do not tell by how much they differ.
    pixels = shape[1] * shape[2] * shape[3]
    given = Given(shape, dtype, offset, 5 if offset == 0 else max(1, pixels // 1024))
    stats, merged = nan(given.tiles, 3, given.c), nan(3, given.c)
    run("bn_stats", x=given.rows(given.x), stats=stats, **given.common)
    run("bn_merge", tiles=given.tiles, channels=given.c, stats=stats, merged=merged)
    count, mean, m2 = merged
    assert (count == given.pixels).all()
    var, wanted = torch.var_mean(given.x.double(), (0, 2, 3), correction=0)
    theirs = torch.batch_norm_update_stats(given.x.float(), None, None, 0.0)
    assert_as_accurate("variance", m2 / count, theirs[1], var)
    pairs = ((mean, m2 / count), theirs, (wanted, var))
    assert_as_accurate("mean", *(torch.stack((m, v.sqrt())) for m, v in pairs))


@dtypes
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_reaches_the_statistics_of_its_channel(value, dtype):
    given = Given((16, 1, 16, 16), dtype)
    x, stats, merged, bn = given.rows(given.x).clone(), nan(given.tiles, 3, 16), nan(3, 16), nan(5, 16)
    x[200, 5] = value
    run("bn_stats", x=x, stats=stats, **given.common)
    run("bn_merge", tiles=given.tiles, channels=16, stats=stats, merged=merged)
    run("bn_finalize", tiles=given.tiles, channels=16, stats=stats, eps=1e-5, bn=bn)
    for found in (merged[2], bn[1]):
        assert (~found.isfinite()).nonzero().tolist() == [[5]]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("count", [1, 3, 8, 100, 129, 300])
def test_bn_finalize(count, affine):
    """bn and the moved running statistics, beside the eager backend's in float32 and float64."""
    torch.manual_seed(0)
    c = 37
    x = torch.randn(2 * count, c, 3, 5) * 2 + 3
    stats = torch.cat([EAGER.bn_stats(part) for part in x.split(2)])
    gamma, beta = (torch.rand(c) + 0.5, torch.randn(c)) if affine else (None, None)
    mean, var, bn = torch.rand(c), torch.rand(c), nan(5, c)
    eager, truth = ([v.clone().to(dtype) for v in (mean, var)] for dtype in (torch.float32, torch.float64))
    wanted = [
        EAGER.bn_finalize_update(stats.to(m.dtype), *(None if v is None else v.to(m.dtype) for v in (gamma, beta)), m, v, None, 0.1, 1e-5)
        for m, v in (eager, truth)
    ]
    fields = {"gamma": gamma, "beta": beta} if affine else {}
    run(
        "bn_finalize",
        tiles=count,
        channels=c,
        stats=stats,
        running_mean=mean,
        running_var=var,
        momentum=0.1,
        eps=1e-5,
        bn=bn,
        **fields,
    )
    for name, ours, theirs, exact in zip(("mean", "invstd", "scale", "beta", "1/M"), bn, *wanted, strict=True):
        assert_as_accurate(name, ours, theirs, exact)
    assert_as_accurate("running mean", mean, eager[0], truth[0])
    assert_as_accurate("running var", var, eager[1], truth[1])


FAR = 1e4
MERGED = {
    "empty-first": ([0.0, 0.0, 20.0, 20.0], [7.0, 0.0, FAR, FAR + 0.01], 1e-3),
    "far-from-zero": ([20.0] * 300, [FAR] * 300, 1e-3),
    "far-from-the-first": ([20.0] * 200, [0.0] + [FAR] * 199, 1e-3),
    "without-deviation": ([3.0, 5.0, 7.0], [0.1] * 3, 0.0),
    "of-one-pixel": ([1.0], [FAR], 0.0),
    "all-empty": ([0.0, 0.0], [0.0, 0.0], 0.0),
}


@pytest.mark.parametrize(("counts", "means", "m2"), MERGED.values(), ids=MERGED)
def test_merging_where_means_are_large(counts, means, m2):
    """As Chan's formula does in float64; a tile of count 0 is neutral, whatever stands in it."""
    c = 17
    stats = torch.tensor([[[n], [mean], [m2 if n else 5.0]] for n, mean in zip(counts, means, strict=True)]).expand(-1, -1, c).contiguous()
    merged, bn = nan(3, c), nan(5, c)
    run("bn_merge", tiles=len(counts), channels=c, stats=stats, merged=merged)
    run("bn_finalize", tiles=len(counts), channels=c, stats=stats, eps=0.0, bn=bn)
    n, mean, squares = (stats[torch.tensor(counts) > 0, i, 0].double() for i in range(3))
    total = max(n.sum(), 1.0)
    about = (n * mean).sum() / total
    wanted = torch.stack((n.sum(), about, squares.sum() + (n * (mean - about) ** 2).sum()))
    torch.testing.assert_close(merged, wanted.float()[:, None].expand(3, c), rtol=1e-6, atol=0)
    torch.testing.assert_close(bn[1], (wanted[2] / total).rsqrt().float().expand(c), rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("tile", [0, 1])
def test_a_mean_that_is_not_finite_stays_so(tile, value):
    stats, merged = torch.ones(2, 3, 16), nan(3, 16)
    stats[tile, 1, 5] = value
    run("bn_merge", tiles=2, channels=16, stats=stats, merged=merged)
    torch.testing.assert_close(merged[1, 5], torch.tensor(value), equal_nan=True)
    assert merged[1].isfinite().sum() == 15


@pytest.mark.parametrize("count", [129, 300])
def test_sums_of_many_tiles(count):
    sums, bn = torch.randn(count, 2, 37), torch.rand(5, 37) + 0.5
    coeffs, dgamma, dbeta = nan(4, 37), nan(37), nan(37)
    run("bn_coeffs", tiles=count, channels=37, sums=sums, bn=bn, coeffs=coeffs, dgamma=dgamma, dbeta=dbeta)
    theirs, exact = (EAGER.bn_coeffs(sums.to(dtype), bn.to(dtype)) for dtype in (torch.float32, torch.float64))
    for name, *values in zip(("coeffs", "dgamma", "dbeta"), (coeffs, dgamma, dbeta), theirs, exact, strict=True):
        assert_as_accurate(name, *values)


def test_bn_finalize_frozen():
    mean, var = torch.rand(2, 16)
    bn = nan(5, 16)
    stats = torch.stack((torch.ones(16), mean, var))[None].contiguous()
    run("bn_finalize", tiles=1, channels=16, stats=stats, eps=1e-3, frozen=True, bn=bn)
    invstd = (var + 1e-3).rsqrt()
    torch.testing.assert_close(bn, torch.stack((mean, invstd, invstd, torch.zeros(16), torch.zeros(16))))


@dtypes
@shapes
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("offset", [3.0, 1000.0])
def test_bn_relu(shape, dtype, relu, offset):
    given = Given(shape, dtype, offset)
    out = given.empty()
    run("bn_relu", x=given.rows(given.x), bn=given.bn, relu=relu, z=out, **given.common)
    assert_as_accurate(
        "z", given.nchw(out), EAGER.bn_relu(given.x, given.bn, relu), EAGER.bn_relu(given.x.double(), given.bn.double(), relu)
    )


@dtypes
def test_a_gradient_stops_where_bn_is_zero(dtype):
    """As in torch: relu has no slope at 0."""
    given = Given((16, 1, 4, 4), dtype)
    x, g, sums, bn = torch.full((16, 16), 2.0).to(dtype), given.empty(), nan(6, 2, 16), given.bn.clone()
    bn[0], bn[3] = 2.0, 0.0
    run("bn_relu_bwd", dz=given.rows(given.dz), x=x, bn=bn, g=g, sums=sums, **given.common)
    assert not g.any()
    assert not sums.any()


@dtypes
def test_sums_alone(dtype):
    given = Given((24, 3, 5, 13), dtype)
    fields = {"dz": given.rows(given.dz), "x": given.rows(given.x), "bn": given.bn, **given.common}
    beside, alone = nan(6, 2, 24), nan(6, 2, 24)
    run("bn_relu_bwd", g=given.empty(), sums=beside, **fields)
    run("bn_relu_bwd", sums=alone, **fields)
    assert torch.equal(alone, beside)


@dtypes
def test_nan_passes_relu(dtype):
    given = Given((16, 1, 4, 4), dtype)
    x, out = given.rows(given.x).clone(), given.empty()
    x[3, 5] = torch.nan
    run("bn_relu", x=x, bn=given.bn, z=out, **given.common)
    assert out.isnan().nonzero().tolist() == [[3, 5]]


@dtypes
@shapes
@pytest.mark.parametrize("relu", [True, False])
def test_bn_relu_bwd(shape, dtype, relu):
    given = Given(shape, dtype, 3.0)
    # dz is written over, as a unit does.
    g, sums = given.rows(given.dz).clone(), nan(given.tiles, 2, given.c)
    coeffs, dgamma, dbeta = nan(4, given.c), nan(given.c), nan(given.c)
    run("bn_relu_bwd", dz=g, x=given.rows(given.x), bn=given.bn, relu=relu, g=g, sums=sums, **given.common)
    run(
        "bn_coeffs",
        tiles=given.tiles,
        channels=given.c,
        sums=sums,
        bn=given.bn,
        coeffs=coeffs,
        dgamma=dgamma,
        dbeta=dbeta,
    )
    theirs, exact = (
        (lambda g, s: (g, *EAGER.bn_coeffs(s, bn)))(*EAGER.bn_relu_bwd(given.dz.to(x.dtype), x, bn, relu))
        for x, bn in ((given.x, given.bn), (given.x.double(), given.bn.double()))
    )
    for name, ours, eager, truth in zip(
        ("g", "coeffs", "dgamma", "dbeta"), (given.nchw(g), coeffs, dgamma, dbeta), theirs, exact, strict=True
    ):
        assert_as_accurate(name, ours, eager, truth)


@dtypes
@shapes
@pytest.mark.parametrize("added", [True, False])
def test_bn_bwd(shape, dtype, added):
    given, coeffs = Given(shape, dtype), torch.randn(4, shape[0])
    out = given.empty()
    fields = {"add": given.rows(given.add)} if added else {}
    run("bn_bwd", g=given.rows(given.dz), x=given.rows(given.x), coeffs=coeffs, dx=out, **fields, **given.common)
    more = given.add if added else None
    exact = EAGER.bn_bwd(given.dz.double(), given.x.double(), coeffs.double(), more.double() if added else None)
    assert_as_accurate("dx", given.nchw(out), EAGER.bn_bwd(given.dz, given.x, coeffs, more), exact)


# Activations that each reads or writes once.
TRAFFIC = {"bn_stats": 1, "bn_relu": 2, "bn_relu_bwd": 3, "bn_bwd": 4}


@pytest.mark.parametrize("name", TRAFFIC)
@pytest.mark.parametrize("channels", [16, 64, 256])
def test_traffic(name, channels):
    """Global sectors of activations at most 1.1 times those that they fill, vectors and sums apart; shared memory without conflicts."""
    given = Given((channels, 2, 16, 16), torch.bfloat16, blocks=8)
    dz = given.rows(given.dz)
    fields = {
        "bn_stats": {"stats": nan(9, 3, channels)},
        "bn_relu": {"bn": given.bn, "z": given.empty()},
        "bn_relu_bwd": {"bn": given.bn, "dz": dz, "g": given.empty(), "sums": nan(9, 2, channels)},
        "bn_bwd": {"coeffs": torch.randn(4, channels), "add": given.rows(given.add), "g": dz, "dx": given.empty()},
    }[name]
    done = run(name, x=given.rows(given.x), **fields, **given.common)
    least = given.pixels * channels * 2 // 32
    activations = {field: sectors for field, (sectors, _) in done.global_.items() if field in ("x", "z", "dz", "g", "add", "dx")}
    assert len(activations) == TRAFFIC[name]
    assert sum(activations.values()) <= 1.1 * TRAFFIC[name] * least
    assert done.shared[0] <= 1.2 * done.shared[1]


@pytest.mark.parametrize("cumulative", [False, True])
def test_batches_are_counted(cumulative):
    """By the kernel, unless the average is cumulative: then the weight is one over their number, this one counted before."""
    mean, var, tracked = torch.zeros(40), torch.zeros(40), torch.tensor(4)
    stats = torch.ones(1, 3, 40)
    buffers = {"running_mean": mean, "running_var": var, "num_batches_tracked": tracked}
    run("bn_finalize", tiles=1, channels=40, cumulative=cumulative, momentum=0.1, eps=1e-5, stats=stats, bn=nan(5, 40), **buffers)
    assert tracked.item() == (4 if cumulative else 5)
    torch.testing.assert_close(mean, torch.full((40,), 0.25 if cumulative else 0.1))
