"""Every primitive is a proper custom operator: schema, fake and strides checked by torch itself; differentiating one is an error."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch.library import opcheck

from fused_preact import PreActBlock, PreActBottleneck, PreActConv2d, ops
from fused_preact.ops.unit import Needs
from tests.testing.cases import BACKENDS, device_of

DEFINED = {name for name in dir(torch.ops.fused_preact) if not name.startswith("_") and name != "name"}
NONE = None


def samples(fmt: torch.memory_format, dtype: torch.dtype, n: int, c: int = 4, k: int = 6) -> Iterator[tuple[str, tuple]]:
    run = ops.Operators("eager")
    x = torch.randn(n, c, 5, 6, dtype=dtype).contiguous(memory_format=fmt)
    w = torch.randn(k, c, 3, 3, dtype=dtype)
    bn = run.bn_finalize(run.bn_stats(x), torch.randn(c), NONE, 1e-5, False)
    conv = ((2, 2), (1, 1), (1, 1), 1)
    y, stats = run.bn_relu_conv2d_fwd(x, bn, w, NONE, NONE, *conv, True, True, NONE)
    g, sums = run.bn_relu_bwd(x, x, bn, True)
    coeffs, _, _ = run.bn_coeffs(sums, bn)
    dy_coeffs = torch.randn(4, k, dtype=bn.dtype)
    yield "bn_stats", (x,)
    yield "bn_merge", (stats.repeat(3, 1, 1),)
    for frozen in (True, False):
        yield "bn_finalize", (stats, torch.randn(k), NONE, 1e-5, frozen)
    for tracked, momentum in ((torch.tensor(0), 0.1), (torch.tensor(0), NONE), (NONE, 0.1)):
        yield "bn_finalize_update", (stats.repeat(2, 1, 1), torch.randn(k), NONE, torch.zeros(k), torch.ones(k), tracked, momentum, 1e-5)
    yield "bn_relu", (x, bn, True)
    yield "bn_relu_bwd", (x, x, bn, False)
    yield "bn_coeffs", (sums, bn)
    yield "bn_bwd", (g, x, coeffs, x)
    yield "bn_bwd", (g, NONE, coeffs, NONE)
    for vectors, bias, residual, want in ((bn, NONE, NONE, False), (bn, torch.randn(k, dtype=dtype), y, True), (NONE, NONE, NONE, True)):
        yield "bn_relu_conv2d_fwd", (x, vectors, w, bias, residual, *conv, True, want, x if want else NONE)
    for emit in ("none", "dz", "g", "sums", "dx", "dx_sums"):
        for late, add in itertools.product((False, True), repeat=2):
            given = coeffs if emit.startswith("dx") else NONE
            deferred = (y if late else NONE, dy_coeffs if late else NONE, y if late and add else NONE)
            yield "bn_relu_conv2d_bwd", (
                y, *deferred, x, bn, w, *conv, True, x if add else NONE, emit, given, x if add else NONE, late or add,
                add or emit == "none", not add,
            )  # fmt: skip


def unit_samples(fmt: torch.memory_format, dtype: torch.dtype, n: int) -> Iterator[tuple[str, tuple]]:
    run = ops.unit_operators
    for unit in (
        PreActBottleneck(8, 2),
        PreActBottleneck(8, 3, 2, preact="shared").eval(),
        PreActBlock(4, 6, 2, preact="shared", shortcut="pad"),
        PreActBlock(4, 4, preact="none"),
    ):
        spec, projection, params, buffers = unit.to(dtype).read().tensors
        params = [p if p is None else p.detach() for p in params]
        projection = None if projection is None else projection.detach()
        x = torch.randn(n, params[2].size(1), 5, 6, dtype=dtype).contiguous(memory_format=fmt)
        depth = len(spec.layers)
        name = "unit_fwd_update" if unit.training else "unit_fwd"
        for keep in (True, False):
            yield name, (x, NONE, projection, params, buffers, *spec.encode(), keep, keep)
        y, _, bns, inner = run.unit_fwd(spec, x, NONE, projection, params, buffers, True, False, "")
        yield "unit_recompute", (x, bns, projection, params, *spec.encode(), y)
        affine = tuple(layer.norm for layer in spec.layers)
        for needs in (Needs(True, projection is not None, affine, (True,) * depth), Needs(False, False, affine, (False,) * depth)):
            for kept in (list(inner), []):
                yield "unit_bwd", (y, x, bns, kept, projection, params, *spec.encode(), needs.flat())


CHEAP = ("test_schema", "test_faketensor")
ALL = (*CHEAP, "test_autograd_registration", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize(
    ("n", "fmt", "dtype", "utils"),
    [
        pytest.param(2, torch.channels_last, torch.float32, ALL, id="nhwc-float32"),
        pytest.param(0, torch.contiguous_format, torch.bfloat16, ALL, id="empty-nchw-bfloat16"),
        pytest.param(0, torch.channels_last, torch.float32, CHEAP, id="empty-nhwc-float32"),
        pytest.param(2, torch.channels_last, torch.bfloat16, CHEAP, id="nhwc-bfloat16"),
        pytest.param(2, torch.contiguous_format, torch.float32, CHEAP, id="nchw-float32"),
        pytest.param(2, torch.contiguous_format, torch.float64, CHEAP, id="nchw-float64"),
    ],
)
def test_opcheck(n, fmt, dtype, utils):
    seen = set()
    for name, args in (*samples(fmt, dtype, n), *unit_samples(fmt, dtype, n)):
        seen.add(name)
        opcheck(getattr(torch.ops.fused_preact, name).default, (*args, ""), test_utils=utils)
    assert seen == DEFINED


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "eager"])
@pytest.mark.parametrize(
    ("n", "fmt", "dtype"), [(1, torch.channels_last, torch.float32), (0, torch.contiguous_format, torch.bfloat16)], ids=["one", "empty"]
)
def test_opcheck_of_other_backends(n, fmt, dtype, backend):
    """Shapes, dtypes and strides are those of the fakes, whoever runs the operator."""
    for name, args in samples(fmt, dtype, n):
        args = [a.to(device_of(backend)) if isinstance(a, torch.Tensor) else a for a in args]
        opcheck(getattr(torch.ops.fused_preact, name).default, (*args, backend), test_utils=CHEAP)


@pytest.mark.parametrize(("c", "k"), [(1, 6), (4, 1), (1, 1)])
@pytest.mark.parametrize("fmt", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
def test_strides_are_torchs_where_they_are_ambiguous(fmt, c, k):
    for name, args in samples(fmt, torch.float32, 2, c, k):
        opcheck(getattr(torch.ops.fused_preact, name).default, (*args, ""), test_utils=CHEAP)


@pytest.mark.parametrize("x_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("w_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (2, 1, 5, 5), (2, 4, 1, 1)], ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_output_format_is_conv2ds(k, shape, w_format, x_format):
    x = torch.randn(shape).contiguous(memory_format=x_format)
    layer = PreActConv2d(shape[1], k, 1)
    layer.conv.weight.data = layer.conv.weight.data.contiguous(memory_format=w_format)
    assert layer(x).stride() == layer.conv(torch.relu(layer.bn(x))).stride()


def gradient_penalty(module: torch.nn.Module, x: torch.Tensor) -> None:
    x.requires_grad_()
    (grad,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    grad.square().sum().backward()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("memory", ["layer", "unit"])
def test_double_backward_of_a_unit_raises(memory, train):
    unit = PreActBottleneck(8, 2, memory=memory).train(train)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        gradient_penalty(unit, torch.randn(2, 8, 4, 4))


@pytest.mark.parametrize("train", [True, False])
def test_double_backward_of_a_layer_raises(train):
    with pytest.raises(RuntimeError, match="create_graph=True"):
        gradient_penalty(PreActConv2d(8, 4, 3).train(train), torch.randn(2, 8, 4, 4))


def test_create_graph_alone_is_allowed():
    """The first derivative under create_graph is the same as without."""
    unit, x = PreActBottleneck(8, 2), torch.randn(2, 8, 4, 4, requires_grad=True)
    (a,) = torch.autograd.grad(unit(x).square().sum(), x, create_graph=True)
    (b,) = torch.autograd.grad(unit(x).square().sum(), x)
    assert torch.equal(a, b)


def test_operators_are_not_differentiable_silently():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="bn_stats can't be differentiated"):
        torch.ops.fused_preact.bn_stats(x, "").sum().backward()
