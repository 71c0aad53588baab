"""The kernels of an input's gradient in the simulator, at every tile that they are compiled for: accuracy, sums, traffic, instructions."""

import pytest
import torch

from fused_preact.backends.cuda import tiles
from fused_preact.backends.cuda.environment import A100
from fused_preact.backends.cuda.shapes import (
    FLAT_BWD,
    FLAT_GRAD,
    FLAT_GRAD_FLOAT32,
    WINDOW_3X3_BWD,
    WINDOW_3X3_FLOAT32,
    WINDOW_3X3_GRAD,
    WINDOW_ANY_FLOAT32,
    WINDOW_ANY_GRAD,
)
from fused_preact.backends.cuda.tiles import (
    ConvTile,
)
from fused_preact.backends.cuda.wgrad_tiles import WgradTile, shared
from fused_preact.backends.layout import conv_out_shape
from fused_preact.backends.layout import tiles as count_tiles
from fused_preact.ops.library import Operators
from tests.cuda.kernels import DTYPES, nan, needs_simulator, problem, run_all
from tests.cuda.test_bn_relu_conv2d_fwd import POINTWISE, WINDOWS, counted, in_geometries, kernels, label, operand, window_kernels
from tests.testing.cases import name_of
from tests.testing.numerics import assert_as_accurate, drawn, fma

pytestmark = needs_simulator
EAGER = Operators("eager")
NONE = ConvTile(0, 0, 0, 0, 0), WgradTile(0, 0, 0, 0, 0)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
# Each kernel with both dtypes and with both kinds of dy, not with all pairs.
pairs = pytest.mark.parametrize(
    ("dtype", "deferred"), [(torch.bfloat16, True), (torch.float16, False)], ids=["bfloat16-deferred", "float16"]
)


def in_pairs(halves, float32):
    """The same with the kernels of each dtype."""
    pairs = [(torch.bfloat16, True), (torch.float16, False), (torch.float32, True)]
    return [(dtype, deferred, *kernel) for dtype, deferred in pairs for kernel in (float32 if dtype == torch.float32 else halves)]


def nhwc(t):
    return t.contiguous(memory_format=torch.channels_last)


class Given:
    """A layer from c to k channels and a gradient of its output, written or deferred; NCHW.

    conv: kernel, stride, padding and dilation.  offset: of x, in deviations.
    """

    def __init__(self, dtype, c, k, image, deferred=False, add_dz=True, offset=0.5, conv=POINTWISE):
        torch.manual_seed(0)
        n, h, w = image
        kernel, *self.geometry = conv
        self.dtype, self.c, self.k = dtype, c, k
        self.problem = problem((n, c, h, w), (k, c, *kernel), *self.geometry, dtype=dtype)
        y = conv_out_shape((n, c, h, w), (k, c, *kernel), *self.geometry)
        self.gamma, self.beta = torch.rand(c) + 0.5, torch.randn(c) * 0.3
        self.x = nhwc(drawn((n, c, h, w), self.gamma, self.beta, offset, dtype))
        self.bn = EAGER.bn_finalize(EAGER.bn_stats(self.x), self.gamma, self.beta, 1e-5, False)
        self.weight = nhwc((torch.randn(k, c, *kernel) / (k * kernel[0] * kernel[1]) ** 0.5).to(dtype))
        self.dy, self.dy_x = (nhwc(torch.randn(y).to(dtype)) for _ in range(2))
        self.dy_coeffs = torch.randn(4, k)
        self.add_dz = nhwc(torch.randn(n, c, h, w).to(dtype)) if add_dz else None
        self.residual_grad = nhwc(torch.randn(n, c, h, w).to(dtype))
        self.coeffs, self.dweight = torch.randn(4, c), None
        if not deferred:
            self.dy_x = self.dy_coeffs = None

    def __call__(self, tile, emit, relu=True, sums_tiles=None, residual_grad=False, wgrad=NONE[1], config=None):
        """out, sums and what the launch did; dweight, if it is wanted, as an attribute."""
        count = sums_tiles or count_tiles(self.x.shape)
        out = None if emit == "sums" else nhwc(nan(*self.x.shape, dtype=self.dtype))
        sums = nan(count, 2, self.c) if emit in ("g", "sums", "dx_sums") else None
        dx = {"coeffs": self.coeffs} if emit.startswith("dx") else {}
        if residual_grad:
            dx["residual_grad"] = self.residual_grad
        fields = {name: getattr(self, name) for name in ("dy", "dy_x", "dy_coeffs", "x", "bn", "weight", "add_dz")}
        fields |= {"emit": emit, "tiles": count, "out": out, "sums": sums, "dgrad": tile, "wgrad": wgrad, **dx}
        if wgrad.parts:
            self.dweight = torch.full_like(self.weight, torch.nan)
            fields |= {"dweight": self.dweight, "parts": nan(wgrad.parts, self.weight.numel())}
        done = run_all("bn_relu_conv2d_bwd", config, dtype=self.dtype, conv=self.problem, relu=relu, **fields)
        return out, sums, done[0]

    def reference(self, dtype, emit, relu=True, residual_grad=False):
        """out and sums of the eager backend."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        of = {
            name: None if value is None else value.to(wide if name.endswith("coeffs") or name == "bn" else dtype)
            for name, value in self.tensors()
        }
        if self.dtype == torch.float32:
            of |= {"dy": self.operand_dy().to(dtype), "weight": operand(self.weight).to(dtype), "dy_x": None, "dy_coeffs": None}
        conv = (of["x"], of["bn"], of["weight"], *self.geometry, 1, relu, of["add_dz"])
        deferred = (of["dy"], of["dy_x"], of["dy_coeffs"], None)
        dx = (of["coeffs"], of["residual_grad"] if residual_grad else None) if emit.startswith("dx") else (None, None)
        return EAGER.bn_relu_conv2d_bwd(*deferred, *conv, emit, *dx, False, True, False)[:3]

    def operand_dy(self):
        """dy as tensor cores multiply it, of float32."""
        if self.dy_coeffs is None:
            return operand(self.dy)
        a, b, mean, c = self.dy_coeffs.view(4, 1, -1, 1, 1)
        return operand(fma(a, self.dy, fma(b, self.dy_x - mean, c)))

    def tensors(self):
        names = ("dy", "dy_x", "dy_coeffs", "x", "bn", "weight", "add_dz", "residual_grad", "coeffs")
        return [(name, getattr(self, name)) for name in names]

    def check(self, out, sums, emit, **how):
        (theirs, their_sums, their_dw), (exact, exact_sums, exact_dw) = (
            self.reference(dtype, emit, **how) for dtype in (self.dtype, torch.float64)
        )
        assert_as_accurate("out", out, theirs, exact)
        for i, name in enumerate(("sum g", "sum g*xhat")):
            own, eager, truth = (None if s is None else s[:, i].sum(0) for s in (sums, their_sums, exact_sums))
            assert_as_accurate(name, own, eager, truth)
        if self.dweight is not None:
            assert_as_accurate("dweight", self.dweight, their_dw, exact_dw)


def flat_tile(slab, out, k, blocks, z=False, itemsize=2):
    shape = (FLAT_BWD if z else tiles.flat_grad_shapes(itemsize))[slab, out]
    return ConvTile(shape.pixels, slab, out, blocks, tiles.flat_dgrad_bytes(slab, out, k, z, itemsize))


def window_tile(given, slab, out, blocks, z=False):
    shape = tiles.window_grad_shapes(given.problem, z)[slab, out]
    return ConvTile(shape.pixels, slab, out, blocks, tiles.window_dgrad_bytes(given.problem, slab, out, z))


@pytest.mark.parametrize(("dtype", "deferred", "slab", "out", "many"), in_pairs(kernels(FLAT_GRAD), kernels(FLAT_GRAD_FLOAT32)), ids=label)
def test_every_flat_kernel(slab, out, many, deferred, dtype):
    """With tails in M, C and K, and blocks that take several tiles of pixels."""
    chunk = 16 // dtype.itemsize
    given = Given(dtype, out + chunk, 2 * slab + 3 * chunk if many else slab - chunk, (3, 13, 17), deferred)
    dx, sums, _ = given(flat_tile(slab, out, given.k, 3, itemsize=dtype.itemsize), "dx_sums", residual_grad=True, sums_tiles=5)
    given.check(dx, sums, "dx_sums", residual_grad=True)
    assert not sums[3:].any()


@pairs
@pytest.mark.parametrize("emit", ["dz", "g", "sums"])
@pytest.mark.parametrize(("slab", "out"), FLAT_BWD)
def test_every_kernel_of_both_gradients(slab, out, emit, deferred, dtype):
    """With tails in M, C and K, and blocks that take several tiles of pixels."""
    given = Given(dtype, out - 8, slab - 8, (3, 13, 17), deferred, add_dz=emit == "dz")
    tile = flat_tile(slab, out, given.k, 3, True)
    found, sums, _ = given(tile, emit, wgrad=shared(tile.blocks), relu=emit != "dz")
    given.check(found, sums, emit, relu=emit != "dz")


@pairs
@pytest.mark.parametrize("emit", ["dz", "g", "sums"])
@pytest.mark.parametrize("geometry", ["3x3", "3x3-unpadded"])
@pytest.mark.parametrize(("slab", "out"), WINDOW_3X3_BWD)
def test_every_window_kernel_of_both_gradients(slab, out, geometry, emit, deferred, dtype):
    """With tiles cut on both sides, tails in C and K, and blocks that take several tiles."""
    given = Given(dtype, out - 8, slab - 8, (2, 19, 37), deferred, add_dz=emit == "dz", conv=WINDOWS[geometry])
    tile = window_tile(given, slab, out, 3, True)
    found, sums, _ = given(tile, emit, wgrad=shared(tile.blocks), relu=emit != "dz")
    given.check(found, sums, emit, relu=emit != "dz")


WINDOW_KERNELS = in_pairs(window_kernels(WINDOW_3X3_GRAD, WINDOW_ANY_GRAD), window_kernels(WINDOW_3X3_FLOAT32, WINDOW_ANY_FLOAT32))


@pytest.mark.parametrize(("dtype", "deferred", "geometry", "slab", "out", "many"), in_geometries(WINDOW_KERNELS))
def test_every_window_kernel(geometry, slab, out, many, deferred, dtype):
    """With tiles cut on both sides, tails in C and K, and blocks that take several tiles."""
    chunk = 16 // dtype.itemsize
    given = Given(dtype, out + chunk, slab + chunk if many else slab - chunk, (2, 19, 21), deferred, conv=WINDOWS[geometry])
    g, sums, _ = given(window_tile(given, slab, out, 3), "g", sums_tiles=5)
    given.check(g, sums, "g")
    assert not sums[3:].any()


def small_tile(given):
    """Of 24 channels to 32, for two blocks."""
    if given.problem.pointwise:
        return flat_tile(32 if given.dtype == torch.float32 else 64, 64, given.k, 2, itemsize=given.dtype.itemsize)
    return window_tile(given, 32 if given.problem.dense_3x3 or given.dtype != torch.float32 else 16, 32, 2)


SMALL = {"flat": POINTWISE, **{name: WINDOWS[name] for name in ("3x3", "3x3-stride2", "1x1-stride2")}}
smalls = pytest.mark.parametrize("conv", SMALL.values(), ids=SMALL)


@dtypes
@pytest.mark.parametrize("emit", ["dz", "g", "sums", "dx", "dx_sums"])
@pytest.mark.parametrize(("relu", "add_dz"), [(True, True), (False, False)])
@smalls
def test_emit(conv, relu, add_dz, emit, dtype):
    given = Given(dtype, 24, 32, (2, 11, 9), True, add_dz, conv=conv)
    out, sums, _ = given(small_tile(given), emit, relu=relu)
    given.check(out, sums, emit, relu=relu)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=name_of)
@smalls
def test_every_emit_has_the_same_bits(conv, dtype):
    given = Given(dtype, 24, 32, (2, 11, 9), conv=conv)
    found = {emit: given(small_tile(given), emit)[:2] for emit in ("g", "sums", "dx", "dx_sums")}
    assert all(torch.equal(found["g"][1], found[emit][1]) for emit in ("sums", "dx_sums"))
    assert torch.equal(found["dx"][0], found["dx_sums"][0])


@dtypes
@pytest.mark.parametrize("image", [(1, 1, 1), (1, 2, 3), (5, 1, 1), (1, 33, 1)], ids=str)
@smalls
def test_small_images(conv, image, dtype):
    given = Given(dtype, 24, 32, image, conv=conv)
    g, sums, _ = given(small_tile(given)._replace(blocks=1), "g")
    given.check(g, sums, "g")


def test_whole_tiles_of_fewer_channels_than_a_block():
    """Channels that x and add_dz do not have are not read."""
    given = Given(torch.bfloat16, 24, 32, (2, 16, 16))
    g, sums, _ = given(small_tile(given), "g")
    given.check(g, sums, "g")


@pairs
@pytest.mark.parametrize("image", [(1, 1, 1), (1, 2, 3), (5, 1, 1), (1, 17, 16)], ids=str)
def test_both_gradients_of_small_images(image, dtype, deferred):
    given = Given(dtype, 16, 24, image, deferred, conv=WINDOWS["3x3"])
    g, sums, _ = given(window_tile(given, 32, 32, 1, True), "g", wgrad=shared(1))
    given.check(g, sums, "g")


@dtypes
@pytest.mark.parametrize("offset", [3.0, 8.0, 16.0, 50.0, 200.0])
@smalls
def test_sums_where_the_mean_is_large(conv, offset, dtype):
    """Sums of g*x about zero would cancel."""
    given = Given(dtype, 24, 32, (2, 17, 15), conv=conv, offset=offset)
    g, sums, _ = given(small_tile(given), "g")
    given.check(g, sums, "g")
    truth = g.double(), (given.x.double() - given.bn[0].double().view(1, -1, 1, 1)) * given.bn[1].double().view(1, -1, 1, 1)
    # Of g as it is stored: beside these sums, those of a rounded g tell little.
    wanted = torch.stack((truth[0].sum((0, 2, 3)), (truth[0] * truth[1]).sum((0, 2, 3))))
    scale = torch.stack((truth[0].abs().sum((0, 2, 3)), (truth[0] * truth[1]).abs().sum((0, 2, 3))))
    assert ((sums.sum(0) - wanted).abs() <= 2e-6 * scale).all()


@dtypes
def test_a_gradient_stops_where_bn_is_zero_and_passes_nan(dtype):
    """As in torch: relu has no slope at 0, nor at -0."""
    given = Given(dtype, 24, 32, (1, 4, 4), add_dz=False)
    given.x.fill_(2.0)
    given.bn[0], given.bn[3] = 2.0, 0.0
    given.x[0, 3, 1, 2] = torch.nan
    # bn of -0 with a mean of 0 and a beta of -0 is -0.
    given.bn[0, 5], given.bn[3, 5], given.x[:, 5] = 0.0, -0.0, -0.0
    g, _, _ = given(small_tile(given)._replace(blocks=1), "g")
    assert g.nonzero().tolist() == [[0, 3, 1, 2]]
    assert g.isfinite().all()


# Warp instructions an image: no more than the prototypes had.
COUNTED = {
    "3x3-16": (16, 16, (2, 32, 32), "3x3", False, 24420),
    "3x3-16-deferred": (16, 16, (2, 32, 32), "3x3", True, 33540),
    "3x3-32-deferred": (32, 32, (2, 16, 16), "3x3", True, 19258),
    "3x3-64-deferred": (64, 64, (2, 8, 8), "3x3", True, 16599),
    "1x1-64-16": (16, 64, (2, 32, 32), None, False, 28456),
    "1x1-64-16-deferred": (16, 64, (2, 32, 32), None, True, 48104),
    "1x1-16-64-deferred": (64, 16, (2, 32, 32), None, True, 56800),
    "1x1-64-256-deferred": (256, 64, (2, 8, 8), None, True, 15432),
}


# Of float32, in the same order.
FLOAT32_COUNTED = (39200, 43600, 29000, 27100, 31500, 41100, 67300, 26400)


@pytest.mark.parametrize(("dtype", "c", "k", "image", "geometry", "deferred", "instructions"), counted(COUNTED, FLOAT32_COUNTED))
def test_counts(dtype, c, k, image, geometry, deferred, instructions):
    """Sectors of activations at most 1.15 times those that they fill, 1.35 with a halo; few instructions."""
    conv = WINDOWS[geometry] if geometry else POINTWISE
    given = Given(dtype, c, k, image, deferred, add_dz=False, conv=conv)
    tile = tiles.dgrad_tile(given.problem, count_tiles(given.x.shape), A100)
    if geometry is None:
        # As for a batch of 128 images: a few in the simulator would be cut finer.
        large = tiles.dgrad_tile(given.problem._replace(n=128), 512, A100)
        tile = large._replace(blocks=-(-given.x.numel() // c // large.pixels))
    _, _, done = given(tile, "g", sums_tiles=max(tile.blocks, count_tiles(given.x.shape)))
    assert done.instructions <= instructions * image[0]
    assert done.shared[0] <= 1.25 * done.shared[1]
    columns = -(-c // tile.out)
    least = {"dy": columns * k, "x": c, "out": c} | ({"dy_x": columns * k} if deferred else {})
    moved = sum(done.global_[name][0] for name in least)
    assert moved <= (1.35 if geometry else 1.15) * given.x.numel() // c * sum(least.values()) * dtype.itemsize / 32


# Of both gradients in one kernel: fewer than those of two.
BOTH_COUNTED = {
    "1x1-64-16-deferred": (64, 16, (2, 32, 32), None, True, 45600),
    "1x1-16-64": (16, 64, (2, 32, 32), None, False, 26100),
    "1x1-128-32-deferred": (128, 32, (2, 16, 16), None, True, 26500),
    "1x1-32-128": (32, 128, (2, 16, 16), None, False, 16500),
    "1x1-64-64-deferred": (64, 64, (2, 16, 16), None, True, 23100),
    "1x1-256-64-deferred": (256, 64, (2, 8, 8), None, True, 15500),
    "1x1-64-256": (64, 256, (2, 8, 8), None, False, 11400),
    "3x3-16-deferred": (16, 16, (2, 32, 32), "3x3", True, 30200),
    "3x3-32-deferred": (32, 32, (2, 16, 16), "3x3", True, 18500),
}


@pytest.mark.parametrize(("c", "k", "image", "geometry", "deferred", "instructions"), BOTH_COUNTED.values(), ids=BOTH_COUNTED)
def test_counts_of_both_gradients(c, k, image, geometry, deferred, instructions):
    """Every activation is read once, but for the halo."""
    given = Given(torch.bfloat16, c, k, image, deferred, add_dz=False, conv=WINDOWS[geometry] if geometry else POINTWISE)
    tile = tiles.dgrad_tile(given.problem, 512, A100, True)
    _, _, done = given(tile, "g", wgrad=shared(tile.blocks), sums_tiles=max(tile.blocks, count_tiles(given.x.shape)))
    assert done.instructions <= instructions * image[0]
    assert done.shared[0] <= 1.25 * done.shared[1]
    pixels = given.x.numel() // c
    least = {"dy": k, "x": c, "out": c} | ({"dy_x": k} if deferred else {})
    for name, channels in least.items():
        assert done.global_[name][0] * 32 <= (1.14 if name in ("dy", "dy_x") and geometry else 1) * pixels * channels * 2, name
