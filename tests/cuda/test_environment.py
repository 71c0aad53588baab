"""Where the cuda backend is usable, and the sentence where it is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fused_preact.backends import available_backends, backend
from fused_preact.backends.cuda import environment
from fused_preact.backends.cuda.environment import SIMULATED, misses, outdated
from fused_preact.backends.records import Case, Conv
from tests.cuda.kernels import needs_simulator

ROOT = Path(__file__).resolve().parents[2]


def unavailable(**env):
    program = "from fused_preact.backends import available_backends; print(available_backends()['cuda'])"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    ("capability", "compiled"),
    [((8, 0), "8.0"), ((8, 6), "8.0 9.0"), ((9, 0), "8.0+PTX"), ((12, 1), "12.0"), ((13, 0), "8.0 12.0+PTX")],
)
def test_code_that_runs(capability, compiled):
    assert misses(capability, compiled) is None


@pytest.mark.parametrize(
    ("capability", "compiled", "reason"),
    [
        ((7, 5), "8.0+PTX", "the cuda backend needs compute capability 8.0 or newer, and a device has 7.5"),
        ((8, 0), "8.6+PTX", "the native library has code for 8.6+PTX, and a device has 8.0: install with FUSED_PREACT_CUDA_ARCHS=8.0"),
        ((9, 0), "8.0 8.6", "the native library has code for 8.0, 8.6, and a device has 9.0: install with FUSED_PREACT_CUDA_ARCHS=9.0"),
    ],
)
def test_code_that_does_not_run(capability, compiled, reason):
    assert misses(capability, compiled) == reason


def test_a_driver_that_is_too_old():
    assert outdated(12080, 13000) == "the native library was built with CUDA 13.0, and the driver is for CUDA 12.8"
    assert outdated(12020, 12080) is None
    assert outdated(13010, 12080) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    reason = unavailable(**{SIMULATED: "0"})
    assert reason == "torch sees no CUDA device" or reason.startswith("the native library is not built: ")


def test_a_simulator_that_is_not_built(monkeypatch, tmp_path):
    monkeypatch.setenv(SIMULATED, "1")
    monkeypatch.setattr(environment, "SIMULATOR", tmp_path)
    assert environment.unavailable() == (
        "FUSED_PREACT_CUDA_SIM is set, and the simulator is not built: python -m tests.ptxsim.build, in a checkout with nvcc"
    )


@needs_simulator
def test_the_simulator_stands_in_for_a_gpu():
    assert available_backends()["cuda"] is None
    assert unavailable(**{SIMULATED: "1"}) == "None"


@needs_simulator
def test_refusals():
    cuda = backend("cuda")
    whole = Case("cpu", torch.bfloat16, (2, 16, 8, 8), (16, 16, 1, 1), torch.bfloat16, Conv())
    assert cuda.why_not(whole) is None
    assert cuda.why_not(whole._replace(device="cuda")) == "the cuda backend runs on cpu tensors here, not on cuda tensors"
    assert cuda.why_not(whole._replace(dtype=torch.float64)) == "the cuda backend takes float32, bfloat16 and float16, not float64"
    narrow = whole._replace(weight=(16, 4, 1, 1), conv=Conv(groups=4))
    assert cuda.why_not(narrow) == "the cuda backend takes groups of 8 channels and more, not of 4"


@needs_simulator
def test_own_kernels():
    """Convolutions of one dtype, one group, whole chunks of channels, float32 only as tf32; the others go through torch's library."""
    from fused_preact.backends.cuda.conv import native

    x, weight = torch.empty(2, 16, 8, 8, dtype=torch.bfloat16), torch.empty(24, 16, 1, 1, dtype=torch.bfloat16)
    assert native(x, weight, 1, None)
    assert native(x, weight, 1, x.new_empty(2, 24, 8, 8))
    others = [(x.float(), weight.float(), 1), (x, weight.half(), 1), (x, weight, 1, torch.empty(2, 24, 8, 8)), (x, weight, 2)]
    assert not any(native(*other) for other in others)
    torch.backends.cudnn.allow_tf32 = True
    assert [native(*other) for other in others] == [True, False, False, False]
