"""What the triton backend takes, and the sentences with which it refuses."""

from types import SimpleNamespace

import pytest
import torch

import fused_preact as fp
from fused_preact.backends import available_backends, backend
from fused_preact.backends.records import Case, Conv
from fused_preact.backends.triton import environment, why_not
from fused_preact.models.shapes import LAYER_SHAPES
from tests.testing.cases import LAYERS, device_of

DEVICE = device_of("triton")


@pytest.fixture
def installed(monkeypatch):
    """Pretend that another version of triton, or none, is installed, and that no interpreter is asked for."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def pretend(version: str | None, missing: str = "triton") -> None:
        def own(name: str):
            if version is None:
                raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
            return SimpleNamespace(__version__=version)

        monkeypatch.setattr(environment, "importlib", SimpleNamespace(import_module=own))

    return pretend


def test_usable_here():
    """On a GPU, or in the interpreter: otherwise nothing in this folder tests anything."""
    assert available_backends()["triton"] is None


def test_missing(installed):
    installed(None)
    assert environment.unavailable() == "triton is not installed; pip install 'fused-preact[triton]'"
    installed(None, "triton._C.libtriton")
    assert environment.unavailable().startswith("triton is installed but can't be imported: ModuleNotFoundError")


@pytest.mark.parametrize("version", ["3.5.1", "2.3.0"])
def test_too_old(installed, version):
    installed(version)
    assert environment.unavailable() == f"triton {version} is too old, expected 3.6 or newer"


@pytest.mark.parametrize("version", ["3.6.0", "3.6rc1", "3.10.0rc1", "4.0.0+git1234", "nightly"])
def test_new_enough_but_no_gpu(installed, version, monkeypatch):
    installed(version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.unavailable().startswith("triton needs a CUDA device and torch sees none")


def test_broken_installation(monkeypatch):
    def broken(name: str):
        raise ImportError("libtriton.so: cannot open shared object file")

    monkeypatch.setattr(environment, "importlib", SimpleNamespace(import_module=broken))
    reason = environment.unavailable()
    assert reason == "triton is installed but can't be imported: ImportError: libtriton.so: cannot open shared object file"


def test_old_gpu(installed, monkeypatch):
    installed("3.7.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(environment, "capability", lambda index: (90, 75)[index])
    assert environment.unavailable() == "triton kernels need compute capability 8.0 or newer on every visible device, and one has 7.5"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", LAYER_SHAPES, ids=lambda shape: shape.id)
def test_takes_every_layer_of_the_networks(shape, dtype):
    """Forward and backward, at the batch sizes that people train with."""
    layer = shape.layer
    weight = (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)
    conv = Conv((layer.stride,) * 2, (layer.padding,) * 2)
    for batch in (1, 64, 256):
        assert why_not(Case(DEVICE, dtype, (batch, layer.in_channels, layer.size, layer.size), weight, dtype, conv)) is None


def test_refuses_few_of_the_shared_cases():
    """What the shared tests leave out for this backend: nothing else."""
    assert {case.id for case in LAYERS if case.refusal("triton", torch.bfloat16)} == {"3x3-groups", "depthwise"}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case("meta", torch.float32, (2, 8, 4, 4)), f"runs on {DEVICE} tensors here, not on meta tensors"),
        (Case(DEVICE, torch.float64, (2, 8, 4, 4)), "takes float32, bfloat16 and float16, not float64"),
        (Case(DEVICE, torch.float32, (2, 8, 4, 4), (8, 8, 1, 1), torch.float64, Conv()), "not float64"),
        (Case(DEVICE, torch.float32, (2, 64, 4, 4), (64, 8, 1, 1), torch.float32, Conv(groups=8)), "takes groups of 16 channels and more"),
        (Case(DEVICE, torch.float32, (2**27, 8, 4, 4)), "counts pixels and offsets inside an image with 32 bits"),
        (Case(DEVICE, torch.float32, (1, 1024, 2048, 2048)), "counts pixels and offsets inside an image with 32 bits"),
        (Case(DEVICE, torch.bfloat16, (2**31 - 129, 1, 1, 1)), "counts pixels and offsets inside an image with 32 bits"),
        (Case(DEVICE, torch.bfloat16, (1, 65536, 1, 1), (65536, 65536, 1, 1), torch.bfloat16, Conv()), "counts weights with 32 bits"),
    ],
    ids=["device", "dtype", "weight-dtype", "groups", "pixels", "image", "last-tile", "weight"],
)
def test_refuses_in_a_sentence(case, words):
    assert words in why_not(case)


def test_insisting_on_it_refuses_in_a_sentence():
    layer = fp.PreActConv2d(6, 6, 3, groups=6).to(DEVICE)
    with fp.use_backend("triton"), pytest.raises(fp.BackendRefusal, match="groups of 16 channels"):
        layer(torch.randn(2, 6, 5, 5, device=DEVICE))


@pytest.mark.parametrize(("allowed", "precision"), [(True, "tf32"), (False, "ieee")])
def test_tf32_only_where_torch_allows_it(allowed, precision, monkeypatch):
    from fused_preact.backends.triton import conv

    torch.backends.cudnn.allow_tf32 = allowed
    seen = []
    plan = conv.fwd_plan
    monkeypatch.setattr(conv, "fwd_plan", lambda p, relu: (seen.append(p.precision), plan(p, relu))[1])
    x, bn = torch.randn(1, 16, 4, 4, device=DEVICE), torch.ones(5, 16, device=DEVICE)
    for dtype in (torch.float32, torch.bfloat16):
        backend("triton").bn_relu_conv2d_fwd(
            x.to(dtype), bn, torch.randn(16, 16, 1, 1, device=DEVICE, dtype=dtype), None, None, (1, 1), (0, 0), (1, 1), 1, True, False, None
        )
    assert seen == [precision, "ieee"]
