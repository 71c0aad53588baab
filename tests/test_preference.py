"""Who runs what by default: the first backend of the table that takes a case."""

from types import SimpleNamespace

import pytest
import torch

from fused_preact import backends
from fused_preact.backends.records import Case, Conv, Layer, Unit
from fused_preact.ops import library, unit


def usable(name: str, refused: tuple[torch.dtype, ...] = ()) -> SimpleNamespace:
    return SimpleNamespace(name=name, why_not=lambda case: f"{name} does not take it" if case.dtype in refused else None)


@pytest.fixture
def gpu(monkeypatch):
    """A machine on which all backends are usable; float16 is refused by the first."""
    found = {"cuda": usable("cuda", (torch.float16,)), "triton": usable("triton"), "eager": usable("eager")}
    monkeypatch.setattr(backends, "backend", found.__getitem__)
    backends.choose.cache_clear()
    yield
    backends.choose.cache_clear()


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [(torch.bfloat16, "cuda"), (torch.float16, "triton"), (torch.float32, "triton")],
    ids=["native-kernels", "refused", "by-the-library-only"],
)
def test_on_a_gpu(gpu, dtype, wanted):
    assert backends.choose(Case("cuda", dtype, (2, 16, 8, 8), (16, 16, 3, 3), dtype, Conv())).name == wanted


def test_float32_where_torch_allows_tf32(gpu):
    """The flag is part of what is remembered."""
    case = Case("cuda", torch.float32, (2, 16, 8, 8), (16, 16, 3, 3), torch.float32, Conv())
    assert [backends.choose(case._replace(tf32=allowed)).name for allowed in (False, True, False)] == ["triton", "cuda", "triton"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("allowed", [True, False], ids=["allowed", "not-allowed"])
def test_layers_are_asked_for_with_the_flag(allowed, dtype, monkeypatch):
    """By layers and by whole units; of float32 alone."""
    seen = []
    monkeypatch.setattr(library, "choose", lambda case, insisted: seen.append(case.tf32))
    monkeypatch.setattr(unit, "choose_unit", lambda record, case, insisted: seen.append(case.tf32))
    torch.backends.cudnn.allow_tf32 = allowed
    x, weight = torch.zeros(2, 8, 4, 4, dtype=dtype), torch.zeros(8, 8, 1, 1, dtype=dtype)
    library.chosen(x, weight, Conv(), "")
    unit._native(Unit((Layer(),)), x, [None, None, weight], None, "")
    assert seen == [allowed and dtype == torch.float32] * 2


def test_elsewhere(gpu):
    """Of a device that the table does not know, eager runs all."""
    assert backends.choose(Case("mps", torch.float32, (2, 16, 8, 8))).name == "eager"
