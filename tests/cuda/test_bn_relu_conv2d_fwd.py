"""The kernels of forward convolutions in the simulator, at every tile that they have: accuracy, statistics, traffic, instructions.

Those of float32 multiply operands rounded to tf32, and so do the references that they are held against.
"""

import pytest
import torch
import torch.nn.functional as F

from fused_preact.backends.cuda.environment import A100
from fused_preact.backends.cuda.shapes import (
    FLAT,
    FLAT_FLOAT32,
    WINDOW_3X3,
    WINDOW_3X3_FLOAT32,
    WINDOW_ANY,
    WINDOW_ANY_FLOAT32,
)
from fused_preact.backends.cuda.tiles import (
    ConvTile,
    flat_fwd_bytes,
    flat_fwd_tile,
    window_fwd_bytes,
    window_fwd_tile,
    window_shapes,
)
from fused_preact.backends.layout import tiles as count_tiles
from fused_preact.ops.library import Operators
from tests.cuda.kernels import DTYPES, nan, needs_simulator, problem, run
from tests.testing.cases import in_turn, name_of
from tests.testing.numerics import assert_as_accurate, drawn, fma, tf32

pytestmark = needs_simulator
EAGER = Operators("eager")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
POINTWISE = ((1, 1), (1, 1), (0, 0), (1, 1))


class Given:
    """A layer from c to k channels; y, its statistics and what the launch did; NCHW for the reference.

    conv: kernel, stride, padding and dilation.
    """

    def __init__(self, dtype, c, k, image, bias=True, residual=True, offset=0.0, conv=POINTWISE):
        torch.manual_seed(0)
        n, h, w = image
        kernel, *self.geometry = conv
        self.dtype, self.c, self.k = dtype, c, k
        self.problem = problem((n, c, h, w), (k, c, *kernel), *self.geometry, dtype=dtype)
        self.out = (n, k, self.problem.y.out, self.problem.x.out)
        self.pixels = n * self.out[2] * self.out[3]
        ones, zeros = torch.ones(c), torch.zeros(c)
        self.x = drawn((n, c, h, w), ones, zeros, 0.5, dtype).contiguous(memory_format=torch.channels_last)
        self.bn = EAGER.bn_finalize(EAGER.bn_stats(self.x), torch.rand(c) + 0.5, torch.randn(c) * 0.3, 1e-5, False)
        self.weight = torch.randn(k, c, *kernel) / (c * kernel[0] * kernel[1]) ** 0.5
        self.weight = self.weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.bias = torch.randn(k) if bias else None
        self.residual = (torch.randn(self.out) + offset).to(dtype).contiguous(memory_format=torch.channels_last) if residual else None

    def __call__(self, tile, relu=True, norm=True, stats_tiles=None, config=None):
        y = nan(*self.out, dtype=self.dtype).contiguous(memory_format=torch.channels_last)
        stats = stats_tiles and nan(stats_tiles, 3, self.k)
        fields = {"x": self.x, "bn": self.bn if norm else None, "weight": self.weight, "bias": self.bias}
        fields |= {"residual": self.residual, "y": y, "stats": stats, "tiles": stats_tiles or 1}
        done = run("bn_relu_conv2d_fwd", config, dtype=self.dtype, conv=self.problem, tile=tile, relu=relu, **fields)
        return y, stats, done

    def z(self, dtype, relu, norm):
        """Rounded to the activation's dtype, as every backend does, or to tf32."""
        if self.dtype == torch.float32:
            mean, _, scale, beta, _ = self.bn.view(5, 1, -1, 1, 1)
            z = fma(self.x - mean, scale, beta) if norm else self.x
            return tf32(z.relu() if norm and relu else z).to(dtype)
        z = self.x.to(dtype)
        if norm:
            z = EAGER.bn_relu(z, self.bn.double() if dtype == torch.float64 else self.bn, relu)
        return z.to(self.dtype).to(dtype)

    def reference(self, dtype, relu=True, norm=True):
        bias = None if self.bias is None else self.bias.to(dtype)
        y = F.conv2d(self.z(dtype, relu, norm), operand(self.weight).to(dtype), bias, *self.geometry)
        return y if self.residual is None else y + self.residual.to(dtype)

    def assert_y(self, y, **how):
        assert_as_accurate("y", y, self.reference(self.dtype, **how), self.reference(torch.float64, **how))

    def assert_stats(self, stats, y):
        n, mean, m2 = EAGER.bn_merge(stats)[0]
        var, wanted = torch.var_mean(y.double(), (0, 2, 3), correction=0)
        theirs = torch.batch_norm_update_stats(y.float(), None, None, 0.0)
        assert (n == self.pixels).all()
        assert_as_accurate("mean of y", mean, theirs[0], wanted)
        assert_as_accurate("variance of y", m2 / self.pixels, theirs[1], var)


def operand(t):
    """As tensor cores multiply it."""
    return tf32(t) if t.dtype == torch.float32 else t


def tile_of(slab, out, c, blocks, dtype):
    shapes = FLAT_FLOAT32 if dtype == torch.float32 else FLAT
    return ConvTile(shapes[slab, out].pixels, slab, out, blocks, flat_fwd_bytes(slab, out, c, dtype.itemsize))


def kernels(shapes):
    """(slab, out, whether slabs take turns) of all that are compiled."""
    return [(*key, many) for key, shape in shapes.items() for many in (False, True) if (shape.slabs if many else shape.one_slab)]


def of_dtypes(halves, float32):
    """Each dtype with its kernels."""
    return [(dtype, *kernel) for dtype in DTYPES for kernel in (float32 if dtype == torch.float32 else halves)]


def in_geometries(params):
    """(dtype, ..., geometry, slab, out, many); the dtypes of 16 bits take turns from one geometry to the next."""
    halves = [torch.bfloat16, torch.float16]
    turns = [in_turn(list(WINDOWS).index(p[-4]) + halves.index(p[0])) if p[0] in halves else () for p in params]
    return [pytest.param(*p, marks=marks, id="-".join(map(str, (name_of(p[0]), *p[1:])))) for p, marks in zip(params, turns, strict=True)]


def label(value):
    return name_of(value) if isinstance(value, torch.dtype) else None


@pytest.mark.parametrize(("dtype", "slab", "out", "many"), of_dtypes(kernels(FLAT), kernels(FLAT_FLOAT32)), ids=label)
def test_every_flat_kernel(slab, out, many, dtype):
    """With tails in M, C and K, and blocks that take several tiles of pixels."""
    chunk = 16 // dtype.itemsize
    given = Given(dtype, 2 * slab + 3 * chunk if many else slab - chunk, out + chunk, (3, 13, 17))
    y, stats, _ = given(tile_of(slab, out, given.c, 3, dtype), stats_tiles=5)
    given.assert_y(y)
    given.assert_stats(stats, y)
    assert not stats[3:].any()


# kernel, stride, padding, dilation
WINDOWS = {
    "3x3": ((3, 3), (1, 1), (1, 1), (1, 1)),
    "3x3-unpadded": ((3, 3), (1, 1), (0, 0), (1, 1)),
    "3x3-stride2": ((3, 3), (2, 2), (1, 1), (1, 1)),
    "1x1-stride2": ((1, 1), (2, 2), (0, 0), (1, 1)),
    "3x3-dilated": ((3, 3), (1, 1), (2, 2), (2, 2)),
    "3x2-mixed": ((3, 2), (1, 3), (2, 0), (2, 1)),
    # Columns of the first of three phases are one more than those of the others.
    "1x4-stride3": ((1, 4), (1, 3), (0, 0), (1, 1)),
    "4x2-stride2": ((4, 2), (2, 2), (2, 1), (1, 1)),
}


def window_kernels(dense, other):
    return [(name, *kernel) for name in WINDOWS for kernel in kernels(dense if name in ("3x3", "3x3-unpadded") else other)]


WINDOW_KERNELS = of_dtypes(window_kernels(WINDOW_3X3, WINDOW_ANY), window_kernels(WINDOW_3X3_FLOAT32, WINDOW_ANY_FLOAT32))


@pytest.mark.parametrize(("dtype", "geometry", "slab", "out", "many"), in_geometries(WINDOW_KERNELS))
def test_every_window_kernel(geometry, slab, out, many, dtype):
    """With tiles cut on both sides, tails in C and K, and blocks that take several tiles."""
    chunk = 16 // dtype.itemsize
    given = Given(dtype, slab + chunk if many else slab - chunk, out + chunk, (2, 19, 21), conv=WINDOWS[geometry])
    shape = window_shapes(given.problem)[slab, out]
    tile = ConvTile(shape.pixels, slab, out, 3, window_fwd_bytes(given.problem, slab, out))
    y, stats, _ = given(tile, stats_tiles=5)
    given.assert_y(y)
    given.assert_stats(stats, y)
    assert not stats[3:].any()


@dtypes
@pytest.mark.parametrize(("relu", "norm"), [(False, True), (True, False)])
def test_other_prologues(relu, norm, dtype):
    given = Given(dtype, 24, 40, (2, 9, 8), bias=False, residual=False)
    y, _, _ = given(tile_of(32, 64, 24, 1, dtype), relu=relu, norm=norm)
    given.assert_y(y, relu=relu, norm=norm)


@dtypes
@pytest.mark.parametrize("pixels", [120, 127, 128, 129])
def test_statistics_of_a_tile_that_is_nearly_full(pixels, dtype):
    """What lies beyond the last pixel is relu(shift), and does not count."""
    given = Given(dtype, 24, 16, (1, 1, pixels), bias=False, residual=False)
    y, stats, _ = given(tile_of(32, 32, 24, 1, dtype), stats_tiles=1)
    given.assert_y(y)
    given.assert_stats(stats, y)


@dtypes
@pytest.mark.parametrize("offset", [3.0, 5.0, 8.0, 16.0, 50.0, 1000.0])
def test_statistics_where_the_mean_is_large(offset, dtype):
    """Unshifted sums of squares would cancel."""
    given = Given(dtype, 16, 64, (1, 32, 32), bias=False, offset=offset)
    y, stats, _ = given(tile_of(16, 64, 16, 4, dtype), stats_tiles=4)
    given.assert_stats(stats, y)


@dtypes
def test_a_constant_channel_has_no_variance(dtype):
    given = Given(dtype, 16, 16, (1, 16, 16), residual=False)
    given.weight[3] = 0
    given.bias[3] = 100.3
    y, stats, _ = given(tile_of(16, 64, 16, 2, dtype), stats_tiles=2)
    given.assert_stats(stats, y)
    assert (stats[:, 2, 3] == 0).all()


@dtypes
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_pixel(value, dtype):
    given = Given(dtype, 24, 16, (1, 16, 16), residual=False)
    given.x[0, 7, 5, 9] = value
    given.bn[2].abs_()
    y, stats, _ = given(tile_of(32, 32, 24, 2, dtype), stats_tiles=2)
    assert (~y.isfinite()).any(1).nonzero().tolist() == [[0, 5, 9]]
    assert not stats[0, 2].isfinite().any()
    assert stats[1].isfinite().all()


# Warp instructions an image: no more than the prototypes had (docs/performance.md). No channel's mean is 8 deviations here.
COUNTED = {
    "64-16": (64, 16, (2, 32, 32), False, 28032),
    "16-64-residual": (16, 64, (2, 32, 32), True, 38552),
    "128-32": (128, 32, (2, 16, 16), False, 15428),
    "32-128-residual": (32, 128, (2, 16, 16), True, 19148),
    "256-64": (256, 64, (2, 8, 8), False, 9022),
    "64-256-residual": (64, 256, (2, 8, 8), True, 11343),
}


# Of float32, in the same order.
FLOAT32_COUNTED = (35700, 42600, 19200, 32600, 13800, 22700)


def counted(layers, of_float32):
    """(dtype, *layer, instructions at most), with ids."""
    params = []
    for (name, layer), most in zip(layers.items(), of_float32, strict=True):
        params += [pytest.param(torch.bfloat16, *layer, id=name), pytest.param(torch.float32, *layer[:-1], most, id=f"{name}-float32")]
    return params


@pytest.mark.parametrize(("dtype", "c", "k", "image", "residual", "instructions"), counted(COUNTED, FLOAT32_COUNTED))
def test_counts(dtype, c, k, image, residual, instructions):
    """Sectors of activations at most 1.15 times those that they fill; shared memory nearly without conflicts; few instructions."""
    given = Given(dtype, c, k, image, bias=False, residual=residual)
    tiles = given.pixels // 64
    # As for a batch of 128 images: a few in the simulator would be cut finer.
    large = flat_fwd_tile(64 * given.pixels, c, k, 512, A100, dtype.itemsize)
    tile = large._replace(blocks=-(-given.pixels // large.pixels))
    _, _, done = given(tile, stats_tiles=tiles)
    assert done.instructions <= instructions * image[0]
    # 1.2 is the aim.
    assert done.shared[0] <= 1.02 * done.shared[1]
    columns = -(-k // tile.out)
    least = {"x": columns * c, "y": k} | ({"residual": k} if residual else {})
    for name, channels in least.items():
        assert done.global_[name][0] <= 1.15 * given.pixels * channels * dtype.itemsize / 32, name


WINDOWS_COUNTED = {
    "3x3-16": (16, (2, 32, 32), "3x3", 19252),
    "3x3-32": (32, (2, 16, 16), "3x3", 11919),
    "3x3-64": (64, (2, 8, 8), "3x3", 12486),
    "3x3-stride2-32": (32, (1, 32, 32), "3x3-stride2", 19230),
}


@pytest.mark.parametrize(("dtype", "c", "image", "geometry", "instructions"), counted(WINDOWS_COUNTED, (33900, 23400, 21000, 51000)))
def test_counts_of_windows(dtype, c, image, geometry, instructions):
    """Sectors of activations at most 1.35 times those that they fill, halo included."""
    given = Given(dtype, c, c, image, bias=False, residual=False, conv=WINDOWS[geometry])
    tiles = count_tiles(given.out)
    _, _, done = given(window_fwd_tile(given.problem, tiles, A100), stats_tiles=tiles)
    assert done.instructions <= instructions * image[0]
    assert done.shared[0] <= 1.2 * done.shared[1]
    moved = sum(done.global_[name][0] for name in ("x", "y"))
    assert moved <= 1.35 * (given.x.numel() + given.pixels * c) * dtype.itemsize / 32
