"""The paths that the cpu kernels choose by size, against plain torch in the same dtype and in float64."""

import pytest
import torch

from fused_preact.backends.cpu.conv import geometry
from fused_preact.backends.layout import tiles
from fused_preact.ops.library import Operators
from tests.cpu import paths
from tests.ops import test_bn_relu_conv2d as shared
from tests.testing.cases import INSTRUCTION_SETS, name_of
from tests.testing.numerics import assert_as_accurate

_cpu = pytest.importorskip("fused_preact._cpu")

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64


def every(*lists):
    """Parametrise by backend, dtype, threads and case: (backends, dtypes, threads, cases) each."""
    params = [
        pytest.param(backend, dtype, threads, case, id=f"{backend}-{name_of(dtype)}-{threads}-{case.id}")
        for backends, dtypes, counts, cases in lists
        for backend in backends
        for dtype in dtypes
        for threads in counts
        for case in cases
    ]
    return pytest.mark.parametrize(("backend", "dtype", "threads", "case"), params)


@pytest.fixture(autouse=True)
def set_threads(request):
    """As many threads as the test is parametrised with."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.node.callspec.params.get("threads", 2))
    yield
    torch.set_num_threads(before)


def check_fwd(case, dtype, layer, run, bn, eager, truth):
    y, stats = run.bn_relu_conv2d_fwd(layer.x, bn, layer.weight, layer.bias, layer.residual, *shared.geometry(layer), True, None)
    assert_as_accurate("y", y, eager.y, truth.y)
    count, mean, m2 = run.bn_merge(stats)[0]
    var, wanted = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    theirs = torch.batch_norm_update_stats(y if dtype == F64 else y.float(), None, None, 0.0)
    assert (count == y.numel() // case.k).all()
    assert_as_accurate("mean of y", mean, theirs[0], wanted)
    assert_as_accurate("variance of y", m2 / count, theirs[1], var)


def check_bwd(case, layer, run, bn, eager, truth):
    """dy as it is: g and sums, then dx, and the gradients of the parameters."""
    dy = (layer.dy, None, None, None)
    conv = (layer.x, bn, layer.weight, *shared.geometry(layer), None)
    g, sums, dw, db, _ = run.bn_relu_conv2d_bwd(*dy, *conv, "g", None, None, False, True, case.bias)
    coeffs, dgamma, dbeta = run.bn_coeffs(sums, bn)
    dx = run.bn_bwd(g, layer.x, coeffs, None)
    assert_as_accurate("dx", dx, eager.x.grad, truth.x.grad)
    assert_as_accurate("dgamma", dgamma, eager.gamma.grad, truth.gamma.grad)
    assert_as_accurate("dbeta", dbeta, eager.beta.grad, truth.beta.grad)
    assert_as_accurate("dweight", dw, eager.weight.grad, truth.weight.grad)
    assert_as_accurate("dbias", db, *((eager.bias.grad, truth.bias.grad) if case.bias else (None, None)))


def check_emits(layer, run, bn, eager, truth):
    """A deferred dy with something added, and every emit."""
    dy = (layer.dy, layer.dy_x, layer.dy_coeffs, layer.dy_add)
    conv = (layer.x, bn, layer.weight, *shared.geometry(layer), layer.add_dz)

    def bwd(emit, coeffs=None, residual_grad=None, want_dy=False, want_dw=False):
        return run.bn_relu_conv2d_bwd(*dy, *conv, emit, coeffs, residual_grad, want_dy, want_dw, False)

    dz, *_ = bwd("dz")
    assert_as_accurate("dz", dz, eager.z.grad, truth.z.grad)
    g, sums, dw, _, dy_out = bwd("g", want_dy=True, want_dw=True)
    assert_as_accurate("dy_out", dy_out, eager.dy, truth.dy)
    assert_as_accurate("dweight", dw, eager.weight.grad, truth.weight.grad)
    coeffs, _, _ = run.bn_coeffs(sums, bn)
    wanted = (eager.x.grad + layer.residual_grad, truth.x.grad + layer.residual_grad.double())
    assert_as_accurate("dx", run.bn_bwd(g, layer.x, coeffs, layer.residual_grad), *wanted)
    dx, *_ = bwd("dx", coeffs, layer.residual_grad)
    assert_as_accurate("dx at once", dx, *wanted)
    both, same_sums, *_ = bwd("dx_sums", coeffs, layer.residual_grad)
    assert torch.equal(both, dx)
    torch.testing.assert_close(same_sums, sums)
    torch.testing.assert_close(bwd("sums")[1], sums)
    _, _, only_dw, _, only_dy = bwd("none", want_dy=True, want_dw=True)
    assert torch.equal(only_dw, dw)
    assert torch.equal(only_dy, dy_out)


@every(
    (["cpu"], [F32], [2], [*paths.SMALL, *paths.CHANNELS, *paths.STREAMED]),
    (["cpu"], [F32], [1, 2, 5], paths.WIDE),
    (["cpu"], [F32], [3], [*paths.THREE_TAPS, *paths.COLUMNS]),
    (["cpu"], [BF16], [2], [*paths.SMALL, *paths.WIDE, *paths.CHANNELS[::4], *paths.STREAMED_BFLOAT16]),
    (["cpu"], [F64], [2], [*paths.WIDE[:2], *paths.COLUMNS[::2], *paths.CHAINS[::3]]),
    (
        INSTRUCTION_SETS,
        [F32],
        [2],
        [*paths.WIDE[:3], *paths.THREE_TAPS[::4], *paths.NARROW[:3], *paths.COLUMNS[::4], *paths.STREAMED[2:3]],
    ),
    (INSTRUCTION_SETS, [BF16], [2], [*paths.WIDE[:1], *paths.THREE_TAPS[:2], *paths.COLUMNS[:1], *paths.GROUPS[:1]]),
)
def test_is_as_accurate_as_eager(backend, dtype, threads, case):
    assert case.why
    layer, run = shared.Layer(case, dtype, torch.channels_last), Operators(backend)
    bn = shared.vectors(run, layer, True)
    plain = [shared.Reference(layer, d, True) for d in (dtype, F64)]
    check_fwd(case, dtype, layer, run, bn, *plain)
    check_bwd(case, layer, run, bn, *plain)
    check_emits(layer, run, bn, *(shared.Reference(layer, d, True, deferred=True, add_dz=True) for d in (dtype, F64)))


@pytest.mark.parametrize("case", [c for c in paths.STREAMED if c.conv.stride == (1, 1)], ids=lambda c: c.id)
def test_large_outputs_need_not_be_aligned(case):
    """Where y is not aligned to a vector it is stored as usual, with the same bits."""
    layer, run = shared.Layer(case, F32, torch.channels_last), Operators("cpu")
    bn = shared.vectors(run, layer, True)
    y, _ = run.bn_relu_conv2d_fwd(layer.x, bn, layer.weight, None, None, *shared.geometry(layer), False, None)
    conv, shape = geometry(tuple(layer.x.shape), tuple(layer.weight.shape), layer.weight.stride(), *case.conv)
    memory = torch.empty(y.numel() + 2)
    pointers = (layer.x, bn, layer.weight)
    workspace = torch.empty(1 << 24, dtype=torch.uint8)
    missing = _cpu.bn_relu_conv2d_fwd(
        _cpu.Dtype.float32, 2, conv, True, *(t.data_ptr() for t in pointers), 0, 0, memory[1:].data_ptr(), 0, tiles(shape),
        workspace.data_ptr(), workspace.numel(),
    )  # fmt: skip
    assert not missing
    assert torch.equal(memory[1:-1].view(y.permute(0, 2, 3, 1).shape), y.permute(0, 2, 3, 1))
    assert memory[[0, -1]].isnan().all()
