"""The kernels of a weight's gradient in the simulator, at every tile that they are compiled for: accuracy, traffic, instructions."""

import pytest
import torch

from fused_preact.backends.cuda.wgrad_tiles import (
    FLAT,
    WINDOW_3X3,
    WINDOW_ANY,
    WgradTile,
    flat_wgrad_bytes,
    window_wgrad_bytes,
)
from tests.cuda import test_bn_relu_conv2d_fwd as fwd
from tests.cuda.kernels import nan, needs_simulator, run_all
from tests.cuda.test_bn_relu_conv2d_fwd import POINTWISE, WINDOWS, dtypes
from tests.testing.numerics import assert_as_accurate

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
        z, dy = self.z(dtype, relu, norm), self.dy.to(dtype)
        if self.coeffs is not None:
            wide = torch.promote_types(dtype, torch.float32)
            a, b, mean, c = self.coeffs.to(wide).view(4, 1, -1, 1, 1)
            dy = (a * dy.to(wide) + b * (self.dy_x.to(wide) - mean) + c).to(self.dtype).to(dtype)
        return torch.nn.grad.conv2d_weight(z, self.weight.shape, dy, *self.geometry)

    def assert_dweight(self, dweight, **how):
        assert_as_accurate("dweight", dweight, self.reference(self.dtype, **how), self.reference(torch.float64, **how))


def flat_tile(shape, parts):
    return WgradTile(shape.pixels, shape.k, shape.c, parts, flat_wgrad_bytes(shape))


def window_tile(given, shape, parts):
    return WgradTile(shape.pixels, shape.k, shape.c, parts, window_wgrad_bytes(given.problem, shape))


def named(shapes):
    return pytest.mark.parametrize("shape", [pytest.param(s, id="x".join(map(str, s))) for s in shapes])


@dtypes
@deferrals
@named(FLAT)
def test_every_flat_kernel(shape, deferred, dtype):
    """With tails in M, C and K, and blocks that take several tiles of pixels."""
    given = Given(dtype, shape.c + 8, shape.k + 8, (3, 13, 17), deferred)
    dweight, _ = given(flat_tile(shape, 3))
    given.assert_dweight(dweight)


WINDOW_KERNELS = [
    pytest.param(name, shape, id=f"{name}-{'x'.join(map(str, shape))}")
    for name, conv in WINDOWS.items()
    for shape in (WINDOW_3X3 if conv[0] == (3, 3) and conv[1] == conv[3] == (1, 1) else WINDOW_ANY)
]


@dtypes
@deferrals
@pytest.mark.parametrize(("geometry", "shape"), WINDOW_KERNELS)
def test_every_window_kernel(geometry, shape, deferred, dtype):
    """With tiles cut on both sides, tails in C and K, and blocks that take several tiles."""
    given = Given(dtype, shape.c + 8, shape.k - 8, (2, 19, 21), deferred, WINDOWS[geometry])
    dweight, _ = given(window_tile(given, shape, 3), memory_format=NCHW)
    given.assert_dweight(dweight)
