"""The primitives of one layer as calls on random tensors: what the parts run, check and time."""

import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_preact.backends import eager
from fused_preact.backends.layout import conv_out_shape, tiles
from fused_preact.backends.records import Case, Conv, allows_tf32
from fused_preact.bench.accuracy import drawn
from fused_preact.models.shapes import Layer

EPS = 1e-5
# The bare convolution, for comparison: `torch.ops.aten` is the backend that has it.
ATEN = {
    "convolution": ("x", "weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups"),
    "convolution_backward": ("dy", "x", "weight", "bias_sizes", "stride", "padding", "dilation", "transposed", "output_padding", "groups"),
}


class Call(NamedTuple):
    """One call of a backend (or of `torch.ops.aten`): the primitive's name and its arguments."""

    primitive: str
    args: tuple[Any, ...]

    def named(self) -> dict[str, Any]:
        """The arguments by the names of the contract."""
        if self.primitive in ATEN:
            return dict(zip(ATEN[self.primitive], self.args, strict=False))
        return dict(inspect.signature(getattr(eager, self.primitive)).bind(*self.args).arguments)

    def __call__(self, backend: Any) -> tuple[Tensor | None, ...]:
        """The results, always as a tuple."""
        out = getattr(backend, self.primitive)(*self.args)
        return out if isinstance(out, tuple) else (out,)


class Inputs:
    """All tensors that the primitives of `layer` may read, drawn from `seed`.

    Activations and weight have `dtype` and are channels_last; there are as many tiles of statistics and sums as x has. With `offset`, x
    lies so many standard deviations off zero, and clear of the ReLU's edge.
    """

    def __init__(self, layer: Layer, batch: int, dtype: torch.dtype, device: str, *, seed: int = 0, offset: float | None = None) -> None:
        self.layer, self.dtype = layer, dtype
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=dtype)

        def activation(shape: Sequence[int]) -> Tensor:
            return normal(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)

        c, k, side = layer.in_channels, layer.out_channels, layer.kernel
        stride, padding = (layer.stride,) * 2, (layer.padding,) * 2
        self.conv = Conv(stride, padding)
        here = (batch, c, layer.size, layer.size)
        there = conv_out_shape(here, (k, c, side, side), stride, padding, (1, 1))
        self.gamma, self.beta = normal(c).abs() + 0.5, normal(c) * 0.5
        if offset is None:
            self.x = activation(here)
        else:
            clear = drawn(here, self.gamma.cpu(), self.beta.cpu(), offset, dtype, seed)
            self.x = clear.to(device, memory_format=torch.channels_last)
        self.weight = activation((k, c, side, side)).div_(math.sqrt(c * side * side))
        self.bias = normal(k).to(dtype)
        self.residual, self.dy, self.dy_x, self.dy_add = (activation(there) for _ in range(4))
        self.dz, self.g, self.residual_grad = (activation(here) for _ in range(3))
        self.dy_coeffs, self.coeffs = normal(4, k), normal(4, c)
        t = tiles(here)
        self.stats = torch.stack([torch.full((t, c), 64.0, device=device), normal(t, c), 64 * normal(t, c).square()], 1)
        self.sums = normal(t, 2, c)
        self.running_mean, self.running_var = normal(c), normal(c).abs() + 0.5
        self.tracked = torch.tensor(7, device=device)
        self.bn = eager.bn_finalize(eager.bn_stats(self.x), self.gamma, self.beta, EPS, False)
        # The coeffs of a layer and its bn have the same mean.
        self.coeffs[2] = self.bn[0]

    def case(self) -> Case:
        """What a backend is asked whether it can run it."""
        shapes = tuple(self.x.shape), tuple(self.weight.shape)
        return Case(self.x.device.type, self.dtype, shapes[0], shapes[1], self.dtype, self.conv, tf32=allows_tf32(self.dtype))

    def fwd(self, residual: bool = False, bias: bool = False, want_stats: bool = True) -> Call:
        optional = (self.bias if bias else None, self.residual if residual else None)
        return Call("bn_relu_conv2d_fwd", (self.x, self.bn, self.weight, *optional, *self.conv, True, want_stats, None))

    def bwd(
        self,
        emit: str,
        *,
        deferred: bool = False,
        dy_add: bool = False,
        add_dz: bool = False,
        want_dy: bool = False,
        want_dw: bool = True,
        want_dbias: bool = False,
    ) -> Call:
        dy = (self.dy, self.dy_x, self.dy_coeffs, self.dy_add if dy_add else None) if deferred else (self.dy, None, None, None)
        ends = (self.coeffs, self.residual_grad) if emit in ("dx", "dx_sums") else (None, None)
        wants = (want_dy, want_dw, want_dbias)
        conv = (self.x, self.bn, self.weight, *self.conv, True, self.dz if add_dz else None)
        return Call("bn_relu_conv2d_bwd", (*dy, *conv, emit, *ends, *wants))

    def torch_fwd(self) -> Call:
        """The bare convolution of x, as if it were z: no norm, no ReLU."""
        return Call("convolution", (self.x, self.weight, None, *self.conv[:3], False, (0, 0), 1))

    def torch_bwd(self) -> Call:
        """Its dgrad and wgrad."""
        return Call("convolution_backward", (self.dy, self.x, self.weight, None, *self.conv[:3], False, (0, 0), 1, (True, True, False)))

    def norms(self) -> dict[str, Call]:
        """The primitives of the norm alone, in every form that networks use."""
        affine = (self.gamma, self.beta)
        frozen = torch.stack((torch.ones_like(self.running_mean), self.running_mean, self.running_var))[None]
        moving = (self.running_mean, self.running_var, self.tracked)
        return {
            "bn_stats": Call("bn_stats", (self.x,)),
            "bn_merge": Call("bn_merge", (self.stats,)),
            "bn_finalize": Call("bn_finalize", (self.stats, *affine, EPS, False)),
            "bn_finalize frozen": Call("bn_finalize", (frozen, *affine, EPS, True)),
            "bn_finalize no affine": Call("bn_finalize", (self.stats, None, None, EPS, False)),
            "bn_finalize_update": Call("bn_finalize_update", (self.stats, *affine, *moving, 0.1, EPS)),
            "bn_finalize_update cumulative": Call("bn_finalize_update", (self.stats, *affine, *moving, None, EPS)),
            "bn_coeffs": Call("bn_coeffs", (self.sums, self.bn)),
            "bn_coeffs no sums": Call("bn_coeffs", (self.sums[:0], self.bn)),
            "bn_relu": Call("bn_relu", (self.x, self.bn, True)),
            "bn_relu no relu": Call("bn_relu", (self.x, self.bn, False)),
            "bn_relu_bwd": Call("bn_relu_bwd", (self.dz, self.x, self.bn, True)),
            "bn_bwd": Call("bn_bwd", (self.g, self.x, self.coeffs, self.residual_grad)),
            "bn_bwd no x": Call("bn_bwd", (self.g, None, self.coeffs * self.coeffs.new_tensor([[1.0], [0], [1], [1]]), None)),
        }

    def convolutions(self) -> dict[str, Call]:
        """Every form of the fused convolution, forward and backward."""
        forward = {
            "fwd": self.fwd(),
            "fwd residual": self.fwd(residual=True),
            "fwd bias": self.fwd(bias=True, want_stats=False),
        }
        backward = {
            "bwd dz": self.bwd("dz"),
            "bwd g": self.bwd("g", add_dz=True, want_dbias=True),
            "bwd g deferred": self.bwd("g", deferred=True),
            "bwd sums deferred": self.bwd("sums", deferred=True),
            "bwd dx deferred": self.bwd("dx", deferred=True, want_dw=False),
            "bwd dx_sums": self.bwd("dx_sums", add_dz=True),
            "bwd none deferred": self.bwd("none", deferred=True, dy_add=True, want_dy=True),
        }
        return forward | backward


def minimal_bytes(call: Call, results: Sequence[Tensor | None]) -> int:
    """What a call must move: each input read once, each output written once; of x no pixel that a strided 1x1 convolution skips."""
    tensors = [arg for arg in (*call.args, *results) if isinstance(arg, Tensor) and arg.numel()]
    total = sum({t.data_ptr(): t.nbytes for t in tensors}.values())
    given = call.named()
    if "weight" not in given or given["weight"].shape[2:] != (1, 1):
        return total
    # Outside of those pixels dz is zero unless something is added; then g and its sums need no x either.
    if given.get("emit") in ("dx", "dx_sums") or given.get("add_dz") is not None:
        return total
    x, (p, q) = given["x"], given["stride"]
    return total - x.nbytes + x.nbytes // (p * q)


def operations(call: Call) -> int:
    """Floating-point operations of the matrix products: 2 per multiply-add, once for each of forward, dgrad and wgrad."""
    given = call.named()
    if "weight" not in given:
        return 0
    products = 2 if call.primitive == "convolution_backward" else 1
    if "emit" in given:
        products = (given["emit"] != "none") + given["want_dw"]
    weight = given["weight"]
    n, k, p, q = conv_out_shape(given["x"].shape, weight.shape, given["stride"], given["padding"], given["dilation"])
    return 2 * products * n * p * q * k * weight[0].numel()
