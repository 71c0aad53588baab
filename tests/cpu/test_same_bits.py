"""The same bits from run to run at a fixed number of threads, and close results at any."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fused_preact.ops.library import Operators
from tests.cpu.paths import case
from tests.ops import test_bn_relu_conv2d as shared
from tests.testing.cases import name_of

_cpu = pytest.importorskip("fused_preact._cpu")

CASES = [
    case("3x3", "tiles of rows", (3, 17, 15, 13), 24, 3, padding=1, bias=True, residual=True),
    case("1x1", "tiles of all pixels", (3, 65, 11, 13), 48, 1, bias=True),
    case("stride2", "phases", (2, 16, 17, 33), 16, 3, stride=2, padding=1, bias=True),
    case("columns", "cut rows", (1, 16, 3, 300), 16, 3, padding=1, bias=True),
    case("wide", "output channels and rows of dweight shared out", (2, 80, 9, 7), 160, 3, padding=1, bias=True),
    case("slices", "eight slices a thread, taken by whoever is done", (8, 32, 24, 24), 32, 3, padding=1, bias=True),
    case("slices1x1", "the same, flattened", (8, 64, 24, 24), 32, 1, bias=True),
    case("groups", "group after group", (2, 48, 9, 7), 48, 3, padding=1, groups=3, bias=True),
]
THREADS = (1, 2, 3, 5)
ROOT = Path(__file__).resolve().parents[2]
FEWER = """
import torch
from tests.cpu.test_same_bits import CASES, shared, step
worst = 0.0
for case in CASES:
    layer = shared.Layer(case, torch.float32, torch.channels_last)
    torch.set_num_threads(1)
    one = step(layer)
    for threads in (3, 5):
        torch.set_num_threads(threads)
        worst = max([worst, *(((t - one[name]).abs().max() / one[name].abs().max()).item() for name, t in step(layer).items())])
print(worst)
"""

cases = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def step(layer):
    """Everything that the primitives give for a layer, by name."""
    run, conv = Operators("cpu"), shared.geometry(layer)
    bn = run.bn_finalize(run.bn_stats(layer.x), layer.gamma, layer.beta, shared.EPS, False)
    y, stats = run.bn_relu_conv2d_fwd(layer.x, bn, layer.weight, layer.bias, layer.residual, *conv, True, None)
    dy = (layer.dy, layer.dy_x, layer.dy_coeffs, layer.dy_add)
    g, sums, dw, db, dy_out = run.bn_relu_conv2d_bwd(*dy, layer.x, bn, layer.weight, *conv, layer.add_dz, "g", None, None, True, True, True)
    coeffs, dgamma, dbeta = run.bn_coeffs(sums, bn)
    dx = run.bn_bwd(g, layer.x, coeffs, layer.residual_grad)
    at_once, same_sums, *_ = run.bn_relu_conv2d_bwd(
        *dy, layer.x, bn, layer.weight, *conv, layer.add_dz, "dx_sums", coeffs, layer.residual_grad, False, False, False
    )
    z, (masked, masked_sums) = run.bn_relu(layer.x, bn, True), run.bn_relu_bwd(layer.add_dz, layer.x, bn, True)
    del run, conv, layer
    return {name: t for name, t in locals().items() if isinstance(t, torch.Tensor)}


@cases
@dtypes
@pytest.mark.parametrize("threads", THREADS)
def test_ten_runs(threads, dtype, case, set_threads):
    layer = shared.Layer(case, dtype, torch.channels_last)
    set_threads(threads)
    first = step(layer)
    assert len(first) >= 14
    for _ in range(9):
        for name, again in step(layer).items():
            assert torch.equal(again, first[name]), name


@cases
@dtypes
def test_any_number_of_threads(dtype, case, set_threads):
    """Other tiles and shares add up in another order, and no more than that."""
    layer, results = shared.Layer(case, dtype, torch.channels_last), {}
    for threads in THREADS:
        set_threads(threads)
        results[threads] = step(layer)
    for threads in THREADS[1:]:
        for name, t in results[threads].items():
            one = results[1][name].double()
            # Single elements of bfloat16 may be rounded to their other neighbour.
            largest, rms = (0.02, 2e-3) if t.dtype == torch.bfloat16 else (2e-5, 2e-6)
            difference = (t.double() - one) / one.abs().max()
            assert difference.abs().max() <= largest, (name, threads)
            assert difference.square().mean().sqrt() <= rms, (name, threads)


@pytest.mark.parametrize("limit", ["1", "2"])
def test_fewer_threads_than_asked_for(limit):
    """OpenMP may give fewer (OMP_THREAD_LIMIT, OMP_DYNAMIC, inside a parallel region): slower, but as right."""
    command, env = [sys.executable, "-c", FEWER], {"OMP_THREAD_LIMIT": limit, "PATH": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Not "less than": a NaN fails too.
    assert 0 <= float(done.stdout) < 2e-5
