"""Host time of a bottleneck unit, forward and backward, on tiny tensors, with kernels that only allocate.

What is left is Python, autograd and dispatch: the time that bounds ungraphed training of ResNet-1001 on a GPU. The plain unit of `torch.nn`
runs beside it with its kernels, which tiny tensors make negligible.

    python -m benchmarks.host_time [--units 20] [--rounds 60] [--json FILE]
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fused_preact import PreActBottleneck, PreActSequential, ops, use_backend
from fused_preact._files import write_atomically
from fused_preact.backends import register
from fused_preact.backends.layout import conv_out_shape, empty, empty_wide, tiles
from fused_preact.bench.machine import machine
from fused_preact.bench.timing import interleaved
from fused_preact.models.architectures import UnitPlan
from fused_preact.models.reference import ReferenceUnit

CHANNELS, WIDTH = 8, 2
# At most so much of the plain unit's time.
AIMS = {"primitives": 1.2, "units": 0.6}


PRIMITIVE_BODIES = {name: f for module in (ops.bn, ops.conv) for name, f in vars(module).items() if hasattr(f, "fake")}


def _allocate(name: str) -> Callable[..., Any]:
    fake = PRIMITIVE_BODIES[name].fake
    return lambda *args: fake(*args, "")


PRIMITIVES = SimpleNamespace(
    **{name: _allocate(name) for name in PRIMITIVE_BODIES},
    unavailable=lambda: None,
    why_not=lambda case: None,
    TWO_DGRADS=False,
)


def unit_fwd(unit, x, stats, projection, params, buffers, keep, want_stats):
    """What a native unit allocates in forward: y, its statistics, one workspace of bn vectors, the inner activations."""
    h, inner, width = x, [], 0
    for i, layer in enumerate(unit.layers):
        weight = params[3 * i + 2]
        width += weight.size(1)
        h = empty(conv_out_shape(h.shape, weight.shape, *layer.conv[:3]), x.dtype, h)
        inner.append(h)
    return h, empty_wide((tiles(h.shape), 3, h.size(1)), h) if want_stats else None, empty_wide((5, width), x), tuple(inner[:-1])


def unit_bwd(unit, dy, x, bns, inner, projection, params, needs):
    """What a native unit allocates in backward: dx, the weight gradients, and one workspace cut into dgamma and dbeta."""
    widths = [params[i].size(1) for i in (2, 5, 8) for _ in range(2)]
    vectors = empty_wide((2 * bns.size(1),), x).split(widths)
    return torch.empty_like(x), None, [g for i in range(3) for g in (*vectors[2 * i : 2 * i + 2], torch.empty_like(params[3 * i + 2]))]


UNITS = SimpleNamespace(**vars(PRIMITIVES), why_not_unit=lambda unit, case: None, unit_fwd=unit_fwd, unit_bwd=unit_bwd)


class NeedsNothing(torch.autograd.Function):
    """A Function of as many inputs that only allocates: the floor of any unit."""

    @staticmethod
    def forward(ctx, x, *params):
        ctx.save_for_backward(x, *params)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, dy):
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors)


class Floor(nn.Module):
    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.params = nn.ParameterList(unit.parameters())
        self.flat = list(self.params)

    def forward(self, x: Tensor) -> Tensor:
        return NeedsNothing.apply(x, *self.flat)


def steps(units: int) -> dict[str, Callable[[], None]]:
    """One training step of a chain of `units` per variant."""
    plan = UnitPlan(CHANNELS, WIDTH, 1, "branch", "identity")
    plain = nn.Sequential(*(ReferenceUnit(plan, True, "3x3") for _ in range(units)))
    fused = PreActSequential(*(PreActBottleneck(CHANNELS, WIDTH) for _ in range(units)))
    floor = nn.Sequential(*(Floor(unit) for unit in fused))
    register("allocating primitives", PRIMITIVES)
    register("allocating units", UNITS)
    x = torch.randn(2, CHANNELS, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    dy = torch.randn_like(x)

    def step(model: nn.Module, backend: str = "eager") -> Callable[[], None]:
        params = list(model.parameters())

        def run() -> None:
            for p in params:
                p.grad = None
            x.grad = None
            with use_backend(backend):
                y = model(x)
            y.backward(dy)

        return run

    return {
        "plain": step(plain),
        "primitives": step(fused, "allocating primitives"),
        "units": step(fused, "allocating units"),
        "empty Function": step(floor),
    }


def measure(units: int, rounds: int) -> dict[str, Any]:
    """Microseconds per unit of every variant, and the ratios to the plain unit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = interleaved(steps(units), rounds, warmup=10)
    finally:
        torch.set_num_threads(threads)
    variants = {name: {key: value * 1e3 / units for key, value in time._asdict().items()} for name, time in times.items()}
    ratios = {name: time["median"] / variants["plain"]["median"] for name, time in variants.items()}
    return {"machine": machine(), "us_per_unit": variants, "over_plain": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = measure(args.units, args.rounds)
    for name, time in result["us_per_unit"].items():
        aim = f", aim {AIMS[name]}" if name in AIMS else ""
        print(f"{name:16} {time['median']:8.1f} us  ({time['q1']:.1f} to {time['q3']:.1f})  {result['over_plain'][name]:.2f} of plain{aim}")
    if args.json:
        write_atomically(args.json, lambda path: path.write_text(json.dumps(result, indent=1)))


if __name__ == "__main__":
    main()
