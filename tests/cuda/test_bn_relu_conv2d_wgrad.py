"""The kernels of a weight's gradient in the simulator, at every tile that they are compiled for: accuracy, traffic, instructions."""

import pytest
import torch

from fused_preact.backends.cuda.environment import A100
from fused_preact.backends.cuda.shapes import (
    FLAT_WGRAD,
    FLAT_WGRAD_FLOAT32,
    WINDOW_3X3_WGRAD,
    WINDOW_3X3_WGRAD_FLOAT32,
    WINDOW_ANY_WGRAD,
)
from fused_preact.backends.cuda.wgrad_tiles import (
    WgradTile,
    flat_wgrad_bytes,
    wgrad_tile,
    window_wgrad_bytes,
)
from tests.cuda import test_bn_relu_conv2d_fwd as fwd
from tests.cuda.kernels import nan, needs_simulator, problem, run_all
from tests.cuda.test_bn_relu_conv2d_fwd import EAGER, POINTWISE, WINDOWS, dtypes, of_dtypes, operand
from tests.testing.cases import name_of
from tests.testing.numerics import assert_as_accurate, fma

pytestmark = needs_simulator
NHWC, NCHW = torch.channels_last, torch.contiguous_format
deferrals = pytest.mark.parametrize("deferred", [False, True], ids=["plain", "deferred"])


class Given(fwd.Given):
    """A layer from c to k channels and dy; its dweight, and what the launches did: of the parts, and of their sum."""

    def __init__(self, dtype, c, k, image, deferred=False, conv=POINTWISE):
        super().__init__(dtype, c, k, image, bias=False, residual=False, conv=conv)
        self.dy, other = (torch.randn(self.out).to(dtype).contiguous(memory_format=NHWC) for _ in range(2))
        self.dy_x, self.coeffs = (other, torch.randn(4, k)) if deferred else (None, None)

    def __call__(self, tile, relu=True, norm=True, memory_format=NHWC, config=None):
        dweight = torch.full_like(self.weight, torch.nan, memory_format=memory_format)
        fields = {"dy": self.dy, "dy_x": self.dy_x, "dy_coeffs": self.coeffs, "x": self.x, "bn": self.bn if norm else None}
        fields |= {"weight": self.weight, "parts": nan(tile.parts, self.weight.numel()), "dweight": dweight}
        taps_last = not dweight.is_contiguous(memory_format=NHWC)
        done = run_all(
            "bn_relu_conv2d_bwd", config, dtype=self.dtype, conv=self.problem, wgrad=tile, relu=relu, taps_last=taps_last, **fields
        )
        return dweight, done

    def reference(self, dtype, relu=True, norm=True):
        # In float32 and rounded once: of 16 bits, and one pixel, torch's own on the CPU leaves elements unwritten.
        wide = torch.promote_types(dtype, torch.float32)
        z, dy = self.z(dtype, relu, norm).to(wide), self.dy.to(wide)
        if self.dtype == torch.float32:
            a, b, mean, c = (None,) * 4 if self.coeffs is None else self.coeffs.view(4, 1, -1, 1, 1)
            dy = operand(self.dy if a is None else fma(a, self.dy, fma(b, self.dy_x - mean, c))).to(wide)
        elif self.coeffs is not None:
            a, b, mean, c = self.coeffs.to(wide).view(4, 1, -1, 1, 1)
            dy = (a * dy + b * (self.dy_x.to(wide) - mean) + c).to(self.dtype).to(wide)
        return torch.nn.grad.conv2d_weight(z, self.weight.shape, dy, *self.geometry).to(dtype)

    def assert_dweight(self, dweight, **how):
        assert_as_accurate("dweight", dweight, self.reference(self.dtype, **how), self.reference(torch.float64, **how))


def flat_tile(shape, parts, dtype):
    return WgradTile(shape.pixels, shape.k, shape.c, parts, flat_wgrad_bytes(shape, dtype.itemsize))


def window_tile(given, shape, parts):
    return WgradTile(shape.pixels, shape.k, shape.c, parts, window_wgrad_bytes(given.problem, shape))


def id_of(shape):
    return "x".join(map(str, shape))


FLAT_KERNELS = [
    pytest.param(d, s, id=f"{name_of(d)}-{id_of(s)}") for d, s in of_dtypes([(s,) for s in FLAT_WGRAD], [(s,) for s in FLAT_WGRAD_FLOAT32])
]


@deferrals
@pytest.mark.parametrize(("dtype", "shape"), FLAT_KERNELS)
def test_every_flat_kernel(shape, deferred, dtype):
    """With tails in M, C and K, and blocks that take several tiles of pixels."""
    chunk = 16 // dtype.itemsize
    given = Given(dtype, shape.c + chunk, shape.k + chunk, (3, 13, 17), deferred)
    dweight, _ = given(flat_tile(shape, 3, dtype))
    given.assert_dweight(dweight)


def fits(dtype, conv, shape):
    """Whether there is shared memory for a window; of float32 and one tap at a time others are not taken."""
    p = problem((2, 8, 19, 21), (8, 8, *conv[0]), *conv[1:], dtype=dtype)
    return window_wgrad_bytes(p, shape) <= A100.shared_limit


# kernel, stride, padding, dilation
SEVEN = ((7, 7), (2, 2), (3, 3), (1, 1))
WINDOW_KERNELS = [
    pytest.param(dtype, conv, shape, id=f"{name_of(dtype)}-{name}-{id_of(shape)}")
    for dtype, dense in of_dtypes([(WINDOW_3X3_WGRAD,)], [(WINDOW_3X3_WGRAD_FLOAT32,)])
    for name, conv in (WINDOWS | {"7x7-stride2": SEVEN}).items()
    for shape in (dense if name in ("3x3", "3x3-unpadded") else WINDOW_ANY_WGRAD)
    if (conv is not SEVEN or shape.taps > 1) and fits(dtype, conv, shape)
]


@deferrals
@pytest.mark.parametrize(("dtype", "conv", "shape"), WINDOW_KERNELS)
def test_every_window_kernel(conv, shape, deferred, dtype):
    """With tiles cut on both sides, tails in C and K, blocks that take several tiles, and groups of taps that are not full."""
    chunk = 16 // dtype.itemsize
    given = Given(dtype, shape.c + chunk, shape.k - chunk, (2, 19, 21), deferred, conv)
    dweight, _ = given(window_tile(given, shape, 2))
    given.assert_dweight(dweight)


def test_a_tail_that_would_overflow():
    """Beyond the last pixel relu(shift) of a constant channel is inf in float16, and inf times the zeros of dy there NaN."""
    given = Given(torch.float16, 48, 72, (1, 5, 5))
    given.x[:, 3] = -300.0
    given.bn = EAGER.bn_finalize(EAGER.bn_stats(given.x), None, None, 1e-5, False)
    dweight, _ = given(wgrad_tile(given.problem, A100))
    given.assert_dweight(dweight)
    assert dweight.isfinite().all()


LAYERS = {
    "1x1": (40, 24, (2, 9, 8), POINTWISE),
    "1x1-one-pixel": (8, 8, (1, 1, 1), POINTWISE),
    "1x1-wide": (136, 72, (1, 5, 5), POINTWISE),
    "3x3": (16, 8, (2, 9, 8), WINDOWS["3x3"]),
    "3x3-one-pixel": (8, 16, (1, 1, 1), WINDOWS["3x3"]),
    "3x3-smaller-than-a-tile": (40, 24, (1, 5, 3), WINDOWS["3x3"]),
    "3x3-much-padded": (8, 8, (2, 4, 6), ((3, 3), (1, 1), (3, 4), (1, 1))),
    "3x3-stride2-one-pixel": (8, 8, (1, 2, 1), WINDOWS["3x3-stride2"]),
    "1x1-stride2": (72, 40, (3, 9, 7), WINDOWS["1x1-stride2"]),
    "7x7-stride2": (8, 40, (1, 11, 13), SEVEN),
}
layers = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


@layers
@pytest.mark.parametrize("memory_format", [NHWC, NCHW], ids=["nhwc", "nchw"])
@dtypes
def test_dweight_lies_as_the_weight(dtype, memory_format, layer):
    c, k, image, conv = layer
    given = Given(dtype, c, k, image, conv=conv)
    dweight, _ = given(wgrad_tile(given.problem, A100), memory_format=memory_format)
    given.assert_dweight(dweight)


@layers
@deferrals
@pytest.mark.parametrize(("relu", "norm"), [(False, True), (True, False)], ids=["no-relu", "no-norm"])
def test_other_prologues(relu, norm, deferred, layer):
    c, k, image, conv = layer
    given = Given(torch.bfloat16, c, k, image, deferred, conv)
    dweight, _ = given(wgrad_tile(given.problem, A100), relu=relu, norm=norm)
    given.assert_dweight(dweight, relu=relu, norm=norm)


@layers
@deferrals
@pytest.mark.parametrize("parts", [1, 7, 40])
def test_any_number_of_parts(parts, deferred, layer):
    """More than there are tiles too: such a part is 0, and added like the others."""
    c, k, image, conv = layer
    given = Given(torch.float16, c, k, image, deferred, conv)
    dweight, _ = given(wgrad_tile(given.problem, A100)._replace(parts=parts), memory_format=NCHW)
    given.assert_dweight(dweight)


@layers
def test_what_is_not_finite_stays_in_its_channels(layer):
    c, k, image, conv = layer
    given = Given(torch.bfloat16, c, k, image, conv=conv)
    given.dy[0, 5, 0, 0], given.x[0, 3, 0, 0] = torch.nan, torch.inf
    given.bn[2].abs_()
    dweight, _ = given(wgrad_tile(given.problem, A100))
    rows, columns = (~dweight.isfinite()).any(-1).any(-1).nonzero().unbind(1)
    assert ((rows == 5) | (columns == 3)).all()
    assert (rows == 5).sum() == c


def test_a_tile_of_other_bytes_is_refused():
    given = Given(torch.bfloat16, 16, 16, (1, 8, 8), conv=WINDOWS["3x3"])
    tile = wgrad_tile(given.problem, A100)
    with pytest.raises(RuntimeError, match="the tile's shared memory is not what the kernel takes"):
        given(tile._replace(shared=tile.shared + 16))
    with pytest.raises(RuntimeError, match="no kernel was compiled for the tile"):
        given(tile._replace(k=128))


# Warp instructions an image of the kernel of parts, with plain and with deferred dy. A block has as many tiles as at a batch of 128.
COUNTED = {
    "3x3-16": (16, 16, (2, 32, 32), "3x3", 10700, 14900),
    "3x3-32": (32, 32, (4, 16, 16), "3x3", 6100, 8200),
    "3x3-64": (64, 64, (16, 8, 8), "3x3", 7000, 9400),
    "3x3-stride2-32": (32, 32, (2, 32, 32), "3x3-stride2", 21200, 23500),
    "64-16": (64, 16, (2, 32, 32), None, 12100, 17800),
    "16-64": (16, 64, (2, 32, 32), None, 7900, 24300),
    "128-32": (128, 32, (2, 16, 16), None, 8700, 13100),
    "32-128": (32, 128, (2, 16, 16), None, 6800, 15200),
    "256-64": (256, 64, (2, 8, 8), None, 8000, 12500),
    "64-256": (64, 256, (2, 8, 8), None, 8000, 12500),
}


# Of float32 and plain dy, in the same order; a deferred one takes 15000 more at most.
FLOAT32_COUNTED = (19600, 13000, 12800, 36000, 23500, 18900, 15100, 13500, 12000, 12000)
KINDS_COUNTED = [
    pytest.param(dtype, *layer[:4], *most, id=f"{name}-{name_of(dtype)}")
    for (name, layer), float32 in zip(COUNTED.items(), FLOAT32_COUNTED, strict=True)
    for dtype, most in ((torch.bfloat16, layer[4:]), (torch.float32, (float32, float32 + 15000)))
]


@deferrals
@pytest.mark.parametrize(("dtype", "c", "k", "image", "geometry", "plain_most", "deferred_most"), KINDS_COUNTED)
def test_counts(dtype, c, k, image, geometry, plain_most, deferred_most, deferred):
    """Sectors of activations at most 1.15 times those that they fill, with a halo 1.35 times; shared memory with few conflicts."""
    given = Given(dtype, c, k, image, deferred, WINDOWS[geometry] if geometry else POINTWISE)
    tile = wgrad_tile(given.problem._replace(n=128), A100)._replace(parts=2)
    _, (done, _) = given(tile)
    assert done.instructions <= (deferred_most if deferred else plain_most) * image[0]
    # Of float32, rows of 16 channels are stored with conflicts.
    assert done.shared[0] <= (1.25 if geometry else 1.02 if dtype != torch.float32 else 1.1) * done.shared[1]
    # x is read for each block of output channels, dy for each of input channels.
    least = {"x": given.x.numel() * -(-k // tile.k), "dy": given.dy.numel() * -(-c // tile.c)}
    least |= {"dy_x": least["dy"]} if deferred else {}
    moved = sum(done.global_[name][0] for name in least)
    assert moved <= (1.35 if geometry else 1.15) * sum(least.values()) * dtype.itemsize / 32
    assert done.global_["parts"][0] == tile.parts * given.weight.numel() * 4 / 32


def test_counts_of_the_sum():
    """264 parts of 9 KB are read once, by blocks that share them out."""
    given = Given(torch.bfloat16, 16, 16, (1, 8, 8), conv=WINDOWS["3x3"])
    _, (_, done) = given(wgrad_tile(given.problem, A100)._replace(parts=264))
    assert done.grid[0] == 72
    assert done.global_["parts"] == (264 * 2304 * 4 / 32,) * 2
    assert done.instructions <= 72 * 8 * 270
