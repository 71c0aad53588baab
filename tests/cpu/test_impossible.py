"""Records that no kernel could run raise ValueError with the primitive's name. Each is tried in a process of its own: none may crash."""

import functools
import os

import pytest
import torch

_cpu = pytest.importorskip("fused_preact._cpu")

F = _cpu.Dtype.float32
# Large enough for every record here, whatever of them is believed.
MEMORY, WORKSPACE = torch.zeros(1 << 16), torch.zeros(1 << 20, dtype=torch.uint8)
P, W = MEMORY.data_ptr(), (WORKSPACE.data_ptr(), WORKSPACE.numel())
AXIS = (4, 1, 1, 0, 1, 4)


def conv(n=1, c=4, k=4, groups=1, h=AXIS, w=AXIS):
    return _cpu.Conv(n, c, k, groups, h, w, (c // max(groups, 1), 1, 1, 1))


def outcome(call):
    """What a call returns or raises, as text; or the signal that it dies of."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            text = f"returned {call()}"
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return text or f"died of signal {os.WTERMSIG(status)}"


def record(function, defaults, workspace=W):
    """Makes calls of `function` with `defaults`, some of them replaced."""

    def of(**other):
        assert other.keys() <= defaults.keys()
        return functools.partial(function, *(defaults | other).values(), *workspace)

    return of


LAUNCH = {"dtype": F, "threads": 1, "conv": conv(), "relu": True}
fwd = record(_cpu.bn_relu_conv2d_fwd, LAUNCH | {"x": P, "bn": P, "weight": P, "bias": 0, "residual": 0, "y": P, "stats": P, "tiles": 1})
DY = {"emit": _cpu.Emit.g, "dy": P, "dy_x": 0, "dy_coeffs": 0, "dy_add": 0, "dy_out": 0}
DX = {"add_dz": 0, "coeffs": 0, "residual_grad": 0, "out": P, "sums": P, "tiles": 1}
bwd = record(_cpu.bn_relu_conv2d_bwd, LAUNCH | DY | {"x": P, "bn": P, "weight": P} | DX | {"dweight": P, "dbias": 0})
SIZES = {"dtype": F, "threads": 1, "pixels": 16, "channels": 4}
stats = record(_cpu.bn_stats, SIZES | {"x": P, "stats": P, "tiles": 1})
relu = record(_cpu.bn_relu, SIZES | {"relu": True, "x": P, "bn": P, "z": P})
relu_bwd = record(_cpu.bn_relu_bwd, SIZES | {"relu": True, "dz": P, "x": P, "bn": P, "g": P, "sums": P, "tiles": 1})
bn_bwd = record(_cpu.bn_bwd, SIZES | {"g": P, "x": P, "coeffs": P, "add": 0, "dx": P})

SIZES = {"wide": False, "tiles": 1, "channels": 4}
merge = record(_cpu.bn_merge, SIZES | {"stats": P, "merged": P}, workspace=())
coeffs = record(_cpu.bn_coeffs, SIZES | {"sums": P, "bn": P, "coeffs": P, "dgamma": P, "dbeta": P}, workspace=())
SIZES = {"wide": False, "frozen": False, "tiles": 1, "channels": 4}
MOVED = {"running_mean": 0, "running_var": 0, "momentum": 0.1, "eps": 1e-5}
finalize = record(_cpu.bn_finalize, SIZES | {"stats": P, "gamma": 0, "beta": 0, **MOVED, "bn": P}, workspace=())

E = _cpu.Emit
AXES = {
    "output-larger": (4, 1, 1, 0, 1, 5),
    "output-smaller": (4, 1, 1, 0, 1, 3),
    "no-output": (4, 1, 1, 0, 1, 0),
    "stride0": (4, 1, 0, 0, 1, 4),
    "dilation0": (4, 1, 1, 0, 0, 4),
    "kernel0": (4, 0, 1, 0, 1, 5),
    "negative-padding": (6, 1, 1, -1, 1, 4),
    "negative-size": (-4, 1, 1, 4, 1, 4),
    "kernel-over-the-edge": (2, 5, 2, 0, 1, 1),
}
CONVS = {
    "no-images": conv(n=0),
    "no-channels": conv(c=0),
    "groups": conv(groups=3),
    "groups0": conv(groups=0),
    "groups-of-k": conv(k=5, groups=2),
}
CONVS |= {f"h-{name}": conv(h=axis) for name, axis in AXES.items()} | {f"w-{name}": conv(w=axis) for name, axis in AXES.items()}
RECORDS = {
    **{f"fwd-{name}": ("bn_relu_conv2d_fwd", fwd(conv=c)) for name, c in CONVS.items()},
    **{f"bwd-{name}": ("bn_relu_conv2d_bwd", bwd(conv=c)) for name, c in CONVS.items()},
    **{f"fwd-no-{name}": ("bn_relu_conv2d_fwd", fwd(**{name: 0})) for name in ("threads", "x", "weight", "y", "tiles")},
    **{f"bwd-no-{name}": ("bn_relu_conv2d_bwd", bwd(**{name: 0})) for name in ("threads", "x", "dy", "weight", "tiles", "out", "sums")},
    "fwd-threads": ("bn_relu_conv2d_fwd", fwd(threads=-1)),
    "bwd-deferred-without-coeffs": ("bn_relu_conv2d_bwd", bwd(dy_x=P)),
    "bwd-deferred-without-x": ("bn_relu_conv2d_bwd", bwd(dy_coeffs=P)),
    "bwd-out-of-none": ("bn_relu_conv2d_bwd", bwd(emit=E.none, sums=0)),
    "bwd-sums-of-none": ("bn_relu_conv2d_bwd", bwd(emit=E.none, out=0)),
    "bwd-out-of-sums": ("bn_relu_conv2d_bwd", bwd(emit=E.sums)),
    "bwd-sums-of-dz": ("bn_relu_conv2d_bwd", bwd(emit=E.dz)),
    "bwd-dx-without-coeffs": ("bn_relu_conv2d_bwd", bwd(emit=E.dx, sums=0)),
    "bwd-dx-sums-without-sums": ("bn_relu_conv2d_bwd", bwd(emit=E.dx_sums, coeffs=P, sums=0)),
    **{f"bn_stats-no-{name}": ("bn_stats", stats(**{name: 0})) for name in ("threads", "pixels", "channels", "tiles", "x", "stats")},
    **{f"bn_relu-no-{name}": ("bn_relu", relu(**{name: 0})) for name in ("threads", "pixels", "channels", "x", "bn", "z")},
    **{f"bn_relu_bwd-no-{name}": ("bn_relu_bwd", relu_bwd(**{name: 0})) for name in ("threads", "tiles", "dz", "x", "bn", "g", "sums")},
    **{f"bn_bwd-no-{name}": ("bn_bwd", bn_bwd(**{name: 0})) for name in ("threads", "pixels", "g", "x", "coeffs", "dx")},
    **{f"bn_merge-no-{name}": ("bn_merge", merge(**{name: 0})) for name in ("stats", "merged")},
    **{f"bn_finalize-no-{name}": ("bn_finalize", finalize(**{name: 0})) for name in ("stats", "bn")},
    "bn_finalize-mean-without-var": ("bn_finalize", finalize(running_mean=P)),
    **{f"bn_coeffs-no-{name}": ("bn_coeffs", coeffs(**{name: 0})) for name in ("sums", "bn", "coeffs", "dgamma", "dbeta")},
    "bn_merge-channels": ("bn_merge", merge(channels=-4)),
    "bn_coeffs-tiles": ("bn_coeffs", coeffs(tiles=-1)),
    "empty_nhwc-negative": ("empty_nhwc", functools.partial(_cpu.empty_nhwc, F, 1, -2, -3, 4)),
    "empty_nhwc-overflow": ("empty_nhwc", functools.partial(_cpu.empty_nhwc, F, 1 << 40, 1 << 40, 1, 1)),
}


@pytest.mark.parametrize("name", RECORDS)
def test_is_refused(name):
    primitive, call = RECORDS[name]
    assert outcome(call).startswith(f"ValueError: {primitive}: ")


LAYER = (conv(), True, True, True, True, 0.1, 1e-5)
UNIT = _cpu.Unit(F, [LAYER, LAYER], False, None, 1, 1)
FROZEN = _cpu.Unit(F, [(*LAYER[:3], False, False, 0.1, 1e-5)] * 2, False, None, 1, 1)
PROJECTED = _cpu.Unit(F, [LAYER, LAYER], False, conv(), 1, 1)
NO_LAYERS = _cpu.Unit(F, [], False, None, 1, 1)
# The layers do not follow each other: the second reads more than the first writes, or the shortcut is of another size than the sum.
BROKEN = _cpu.Unit(F, [LAYER, (conv(c=8), *LAYER[1:])], False, None, 1, 1)
WIDER = _cpu.Unit(F, [LAYER, (conv(k=8), *LAYER[1:])], False, None, 1, 1)


def unit_fwd(unit=UNIT, **other):
    defaults = {"threads": 1, "again": False, "x": P, "stats": 0, "projection": 0, "layers": [P, P, P, 0, 0, 0] * 2, "inner": [P], "bns": P}
    return functools.partial(unit.fwd, *(defaults | {"y": P, "y_stats": 0} | other).values(), *W)


def unit_bwd(unit=UNIT, **other):
    two = {"dgamma": [P, P], "dbeta": [P, P], "dweight": [P, P]}
    defaults = {"threads": 1, "dy": P, "x": P, "bns": P, "projection": 0, "inner": [P], "weights": [P, P], "dx": P, "dprojection": 0, **two}
    return functools.partial(unit.bwd, *(defaults | other).values(), *W)


UNITS = {
    "fwd-few-tensors": unit_fwd(layers=[P, P, P, 0, 0, 0]),
    "fwd-many-tensors": unit_fwd(layers=[P, P, P, 0, 0, 0] * 3),
    "fwd-no-inner": unit_fwd(inner=[]),
    "fwd-many-inner": unit_fwd(inner=[P, P]),
    **{f"fwd-no-{name}": unit_fwd(**{name: 0}) for name in ("threads", "x", "bns", "y")},
    "fwd-no-weight": unit_fwd(layers=[P, P, 0, 0, 0, 0] * 2),
    "fwd-no-projection": unit_fwd(PROJECTED),
    "fwd-no-layers": unit_fwd(NO_LAYERS, layers=[], inner=[]),
    "fwd-frozen-without-buffers": unit_fwd(FROZEN),
    "fwd-no-tiles": unit_fwd(_cpu.Unit(F, [LAYER, LAYER], False, None, 1, 0), y_stats=P),
    "fwd-broken-chain": unit_fwd(BROKEN),
    "fwd-wider-than-the-shortcut": unit_fwd(WIDER),
    **{f"bwd-no-{name}": unit_bwd(**{name: 0}) for name in ("threads", "dy", "x", "bns")},
    "bwd-null-inner": unit_bwd(inner=[0]),
    "bwd-many-inner": unit_bwd(inner=[P, P]),
    **{f"bwd-few-{name}": unit_bwd(**{name: [P]}) for name in ("weights", "dgamma", "dbeta", "dweight")},
    "bwd-no-dbeta": unit_bwd(dbeta=[0, 0]),
    "bwd-no-projection": unit_bwd(PROJECTED, dprojection=P),
    "bwd-no-layers": unit_bwd(NO_LAYERS, inner=[], weights=[], dgamma=[], dbeta=[], dweight=[]),
    "bwd-broken-chain": unit_bwd(BROKEN),
}


@pytest.mark.parametrize("name", UNITS)
def test_unit_is_refused(name):
    assert outcome(UNITS[name]).startswith(f"ValueError: unit_{name[:3]}: ")


def test_what_is_possible_is_done():
    calls = [fwd(), bwd(), stats(), relu(), relu_bwd(), bn_bwd(), unit_fwd(), unit_bwd()]
    assert [outcome(call) for call in calls] == ["returned 0"] * len(calls)
    assert [outcome(call()) for call in (merge, finalize, coeffs)] == ["returned None"] * 3


def test_a_missing_workspace_is_asked_for():
    """Nothing is computed before."""
    call = fwd()
    missing = _cpu.bn_relu_conv2d_fwd(*call.args[:-2], 0, 0)
    assert 0 < missing <= W[1]
    assert _cpu.bn_relu_conv2d_fwd(*call.args[:-2], W[0], missing - 1) == missing
    assert UNIT.fwd(*unit_fwd().args[:-2], 0, 0) > 0
