"""The kernels of csrc/cuda one by one, in the simulator: called with tensors and numbers by name, and what each launch did."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fused_preact.backends.cuda.tiles import Axis, ConvTile, Problem
from fused_preact.backends.cuda.wgrad_tiles import WgradTile
from fused_preact.backends.layout import conv_out_shape
from tests.ptxsim.build import missing
from tests.ptxsim.simulator import Launch, simulator

# Not where the backend can't run in the simulator for another reason: that is a failure.
REASON = missing() or ("runs in the simulator, and there is a GPU" if torch.cuda.is_available() else None)
needs_simulator = pytest.mark.skipif(REASON is not None, reason=str(REASON))

# Of each kernel: the numbers, the tensors that it reads and those that it writes, in the order of the binding's arguments.
KERNELS = {
    "bn_stats": ("dtype pixels channels grid tiles", "x", "stats"),
    "bn_relu": ("dtype pixels channels grid pitch relu", "x bn", "z"),
    "bn_relu_bwd": ("dtype pixels channels grid pitch relu tiles", "dz x bn", "g sums"),
    "bn_bwd": ("dtype pixels channels grid", "g x coeffs add", "dx"),
    "bn_merge": ("tiles channels", "stats", "merged"),
    "bn_finalize": ("tiles channels frozen cumulative momentum eps", "stats gamma beta", "running_mean running_var num_batches_tracked bn"),
    "bn_coeffs": ("tiles channels pitch", "sums bn", "coeffs dgamma dbeta"),
    "bn_relu_conv2d_fwd": ("dtype conv tile pitch relu tiles", "x bn weight bias residual", "y stats"),
    "bn_relu_conv2d_bwd": (
        "dtype conv dgrad wgrad pitch relu emit tiles taps_last",
        "dy dy_x dy_coeffs x bn weight add_dz coeffs residual_grad",
        "out sums parts dweight",
    ),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEFAULTS = {"frozen": False, "cumulative": False, "relu": True, "momentum": 0.0, "emit": "none", "taps_last": False, "tiles": 1}
DEFAULTS |= {"dgrad": ConvTile(0, 0, 0, 0, 0), "wgrad": WgradTile(0, 0, 0, 0, 0)}


def run(name: str, config: dict | None = None, **given: object) -> Launch:
    """Launches a kernel and says what it did; whatever the simulator objects to fails the test. A pitch is the number of channels."""
    (done,) = run_all(name, config, **given)
    return done


def run_all(name: str, config: dict | None = None, **given: object) -> list[Launch]:
    """The same for what launches several kernels."""
    from fused_preact import _cuda
    from fused_preact.backends.cuda import launch

    sim = simulator()
    sim.clear(**config or {})
    native = {
        torch.dtype: launch.DTYPES.get,
        Problem: lambda t: _cuda.Conv(*t[:5]),
        ConvTile: lambda t: _cuda.ConvTile(*t),
        WgradTile: lambda t: _cuda.WgradTile(*t),
        str: lambda name: getattr(_cuda.Emit, name),
        tuple: lambda t: _cuda.Grid(*t),
    }
    channels = given["conv"].c if "conv" in given else given.get("channels")
    given = DEFAULTS | {"pitch": channels} | given
    numbers, reads, writes = (names.split() for names in KERNELS[name])
    numbers = [next((make(given[n]) for kind, make in native.items() if isinstance(given[n], kind)), given[n]) for n in numbers]
    tensors = ({n: given.get(n) for n in names} for names in (reads, writes))
    launch.launch(getattr(_cuda, name), torch.empty(0), *numbers, **dict(zip(("reads", "writes"), tensors, strict=True)))
    return sim.launches()


def problem(x: Sequence[int], weight: Sequence[int], *conv: Sequence[int], dtype: torch.dtype = torch.bfloat16) -> Problem:
    """Of x and weight (NCHW), stride, padding and dilation."""
    out = conv_out_shape(x, weight, *conv)
    axes = (Axis(x[i + 2], out[i + 2], weight[i + 2], *(pair[i] for pair in conv)) for i in (0, 1))
    return Problem(x[0], x[1], weight[0], *axes, dtype.itemsize)


def nan(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)
