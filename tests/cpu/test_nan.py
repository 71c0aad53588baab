"""NaN and infinity in x end up where torch puts them, and a NaN keeps its gradient."""

import pytest
import torch

from fused_preact.ops.library import Operators
from tests.cpu.paths import case
from tests.testing.cases import DTYPES, INSTRUCTION_SETS, name_of

_cpu = pytest.importorskip("fused_preact._cpu")

NAN, INF = float("nan"), float("inf")
CASES = [
    case("1x1", "one output pixel sees it", (2, 20, 9, 7), 24, 1),
    case("narrow", "the narrow block", (2, 64, 9, 7), 16, 1),
    case("3x3", "a neighbourhood sees it", (2, 20, 9, 7), 24, 3, padding=1),
    case("three-taps", "the three-taps block", (2, 16, 9, 16), 16, 3, padding=1),
    case("stride2", "some phases see it", (2, 20, 9, 7), 24, 3, stride=2, padding=1),
    case("columns", "on a border of tiles", (1, 8, 3, 300), 8, 3, padding=1),
]
BACKENDS_AND_DTYPES = [(name, dtype) for name in ("cpu", *INSTRUCTION_SETS) for dtype in DTYPES[name]]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
@pytest.mark.parametrize(("backend", "dtype"), BACKENDS_AND_DTYPES, ids=lambda v: v if isinstance(v, str) else name_of(v))
def test_as_eager(backend, dtype, case, value):
    """The same elements are NaN, the same infinite; the rest is close."""
    g = torch.Generator().manual_seed(3)
    (n, c, h, w), wide = case.x, torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(case.x, generator=g).to(dtype).contiguous(memory_format=torch.channels_last)
    for image, channel, row, column in ((0, 2, 1, 3), (n - 1, c - 1, h - 1, w - 1)):
        x[image, channel, row, column] = value
    bn = torch.rand(5, c, generator=g).to(wide) + 0.5
    weight = torch.randn(case.k, c, *case.kernel, generator=g).to(dtype).contiguous(memory_format=torch.channels_last)
    conv = (*case.conv, True)

    def results(name, x, weight):
        run = Operators(name)
        y, _ = run.bn_relu_conv2d_fwd(x, bn, weight, None, None, *conv, False, None)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(4)).to(dtype).to(y).contiguous(memory_format=torch.channels_last)
        g, sums, dw, _, _ = run.bn_relu_conv2d_bwd(dy, None, None, None, x, bn, weight, *conv, None, "g", None, None, False, True, False)
        return {
            "y": y,
            "z": run.bn_relu(x, bn, True),
            "g": g,
            "dbeta": sums.sum(0)[0],
            "dw": dw,
            "masked": run.bn_relu_bwd(x, x, bn, True)[0],
        }

    # In bfloat16 torch's own convolution multiplies NaN with padding.
    got, wanted = results(backend, x, weight), results("eager", x.to(wide), weight.to(wide))
    for name in got:
        assert torch.equal(got[name].isnan(), wanted[name].isnan()), name
        assert torch.equal(got[name] == INF, wanted[name] == INF), name
        assert torch.equal(got[name] == -INF, wanted[name] == -INF), name
        clean = wanted[name].isfinite()
        difference = (got[name].to(wide) - wanted[name])[clean].abs().max() / wanted[name][clean].abs().max()
        assert difference <= (0.05 if dtype == torch.bfloat16 else 1e-5), name
    bad = (0, 2, 1, 3)
    assert got["y"].isnan().any() == (value != value)
    if value != value:
        assert got["g"][bad] == got["g"][bad]
        assert got["g"][bad] != 0 or case.conv.stride == (2, 2)
    if value == -INF:
        assert got["y"].isfinite().all()
        assert got["g"][bad] == 0


@pytest.mark.parametrize("value", [NAN, INF])
def test_statistics_tell_of_it(value):
    """In the channel that has it, and in no other."""
    run, x = Operators("cpu"), torch.randn(2, 20, 9, 7).contiguous(memory_format=torch.channels_last)
    x[1, 18, 2, 2] = value
    stats, clean = run.bn_merge(run.bn_stats(x))[0], torch.arange(20) != 18
    assert not stats[1:, 18].isfinite().any()
    torch.testing.assert_close(stats[1, clean], x.mean((0, 2, 3))[clean])
