"""Each primitive on each layer shape of the table, in bfloat16, beside cuDNN's bare convolution: time, and rates over the ceilings.

Time is taken twice: replaying a CUDA graph of calls on distinct buffers, more than the L2 holds (the kernels' own time, from memory), and
calling (what the host adds). All functions of a shape take turns.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_report.calls import Call, Inputs, minimal_bytes, operations
from benchmarks.gpu_report.child import Job
from benchmarks.gpu_report.graphs import capture
from fused_preact.bench.timing import Quartiles
from fused_preact.models.shapes import LAYER_SHAPES, Layer, LayerShape

DTYPE = torch.bfloat16
IMAGENET_BATCH, CIFAR_BATCH = 64, 128
# Images on which the variants of a network are compared: their kernels are compiled with the others.
CHECKED = 4
RANKED = ("preact_resnet1001", "preact_resnet200")
ROUNDS, SAMPLE_MS = 9, 4.0
# The buffers of a shape hold so many times the L2, unless they are so small that it takes more sets of them than this.
L2_TIMES, MOST_SETS = 3, 32
# Until the ceilings are measured: operations a byte at which a convolution stops waiting for memory. It only orders the shapes.
BALANCE = 200.0
FIRST_SHAPES, NORMS = 8, 6
TIMED_NORMS = ("bn_stats", "bn_relu", "bn_relu_bwd", "bn_bwd", "bn_finalize_update", "bn_coeffs")
# Whose time is put over whose.
BARE = {"fwd": "conv fwd", "bwd g": "conv bwd"}


class Function(NamedTuple):
    """What is timed: a call on each set of buffers, by a backend or by `torch.ops.aten`; and what its row says besides."""

    backend: Any
    calls: list[Call]
    facts: dict[str, Any]

    def cycle(self) -> None:
        # Kept until the end, so that no call writes where another wrote.
        kept = [call(self.backend) for call in self.calls]
        del kept


def run(job: Job) -> None:
    shapes = ordered(job.ceilings)
    if job.dry:
        shapes = [shapes[0], next(shape for shape in shapes if shape.layer.kernel != shapes[0].layer.kernel)]
    activations: dict[tuple[int, int], LayerShape] = {}
    for shape in shapes:
        activations.setdefault((shape.layer.in_channels, shape.layer.size), shape)
    tasks = [(shape, False) for shape in shapes]
    tasks[FIRST_SHAPES:FIRST_SHAPES] = [(shape, True) for shape in list(activations.values())[: 1 if job.dry else NORMS]]
    for shape, norms in job.shared(tasks):
        batch = IMAGENET_BATCH if RANKED[1] in shape.networks else CIFAR_BATCH
        _group(job, shape, norms, batch, f"{shape.layer.in_channels}ch-{shape.layer.size}px" if norms else shape.id)
    if job.warm:
        for shape in job.shared(shapes):
            _group(job, shape, False, CHECKED, f"{shape.id} batch {CHECKED}")


def ordered(ceilings: dict[str, float]) -> list[LayerShape]:
    """The table, most valuable shape first: by its share of the least possible time of all layers of ResNet-1001 or ResNet-200."""
    balance = ceilings["matmul bfloat16"] / ceilings["copy"] if {"matmul bfloat16", "copy"} <= ceilings.keys() else BALANCE

    def least(layer: Layer) -> float:
        """Time of forward, as the bytes that could be moved in it."""
        out = layer.size // layer.stride
        moved = 2 * (layer.in_channels * layer.size**2 + layer.out_channels * out**2)
        return max(moved, 2 * layer.in_channels * layer.out_channels * layer.kernel**2 * out**2 / balance)

    totals = {name: sum(s.networks.get(name, 0) * least(s.layer) for s in LAYER_SHAPES) for name in RANKED}
    return sorted(LAYER_SHAPES, key=lambda s: -max(s.networks.get(name, 0) * least(s.layer) / total for name, total in totals.items()))


def ends_unit(layer: Layer) -> bool:
    """Whether it is the last layer of a bottleneck, which adds the shortcut and whose gradient comes undeferred."""
    return layer.kernel == layer.stride == 1 and layer.out_channels == 4 * layer.in_channels


def bare(inputs: Inputs) -> dict[str, Call]:
    """What torch is timed on."""
    return {"conv fwd": inputs.torch_fwd(), "conv bwd": inputs.torch_bwd()}


def fused(inputs: Inputs) -> dict[str, Call]:
    """What a backend is timed on: as units call it, and the pair sums, dx that stands for g and bn_bwd where TWO_DGRADS is set."""
    last = ends_unit(inputs.layer)
    return {
        "fwd": inputs.fwd(residual=last),
        "bwd g": inputs.bwd("g", deferred=not last),
        "bwd sums": inputs.bwd("sums", deferred=not last),
        "bwd dx": inputs.bwd("dx", deferred=not last, want_dw=False),
    }


def norm_alone(inputs: Inputs) -> dict[str, Call]:
    """The primitives of a norm."""
    return {form: call for form, call in inputs.norms().items() if form in TIMED_NORMS}


def _group(job: Job, shape: LayerShape, norms: bool, batch: int, of: str) -> None:
    """All functions of a shape (or of the norm in front of it): called once each, then timed in turns."""
    layer = shape.layer
    if job.dry:
        layer, batch = layer._replace(size=4), 2
    sets = job.attempt(of, lambda: _sets(job, layer, batch))
    if not sets:
        return
    facts = {"shape": of, "networks": shape.networks, "batch": batch, "sets": len(sets)}
    functions = dict(_prepared(job, of, sets, norms, facts))
    if functions and not job.warm:
        _time(job, functions)


def _sets(job: Job, layer: Layer, batch: int) -> list[Inputs]:
    first = Inputs(layer, batch, DTYPE, job.device)
    if job.warm:
        return [first]
    wanted = math.ceil(L2_TIMES * _cache(job) / (first.x.nbytes + first.dy.nbytes))
    return [first, *(Inputs(layer, batch, DTYPE, job.device, seed=seed) for seed in range(1, max(2, min(MOST_SETS, wanted))))]


def _cache(job: Job) -> int:
    return torch.cuda.get_device_properties(job.device).L2_cache_size if job.on_gpu else 0


def _prepared(job: Job, of: str, sets: list[Inputs], norms: bool, facts: dict[str, Any]) -> Iterator[tuple[str, Function]]:
    """Every function that runs, by the name of its row; torch's come first, whose failure would be news."""
    forms_of = {} if norms or job.warm else {"torch": (torch.ops.aten, bare)}
    for name, backend in job.backends().items():
        if job.usable(f"{of} {name}", name, backend, sets[0].case(), **facts):
            forms_of[name] = (backend, norm_alone if norms else fused)
    for who, (backend, forms) in forms_of.items():
        by_set = [forms(inputs) for inputs in sets]
        for form in by_set[0]:
            name = f"{of} {who} {form}"
            own = facts | {"backend": who, "form": form}
            function = Function(backend, [calls[form] for calls in by_set], own)
            counted = job.attempt(name, functools.partial(_counted, function), **own)
            if counted is not None:
                own |= counted
                if job.on_gpu:
                    own["from_memory"] = counted["bytes"] * len(sets) >= 2 * _cache(job)
                yield name, function


def _counted(function: Function) -> dict[str, int]:
    """Bytes and operations of one call. A kernel that does not exist yet is compiled here."""
    call = function.calls[0]
    return {"bytes": minimal_bytes(call, call(function.backend)), "flops": operations(call)}


def _time(job: Job, functions: dict[str, Function]) -> None:
    options = {"rounds": 1 if job.dry else ROUNDS, "warmup": 1, "sample_ms": 0.0 if job.dry else SAMPLE_MS}
    cycles = {name: function.cycle for name, function in functions.items()}
    replays: dict[str, Callable[[], object]] = {}
    for name, time in job.take_turns(cycles, lambda name: functions[name].facts, **options).items():
        function = functions[name]
        function.facts["call_ms"] = _each(time, function)
        replay = job.attempt(name, functools.partial(capture, function.cycle, job.device), **function.facts)
        if replay is not None:
            replays[name] = replay
    times = job.take_turns(replays, lambda name: functions[name].facts, **options)
    medians = {functions[name].facts["form"]: time.median for name, time in times.items() if functions[name].backend is torch.ops.aten}
    for name, time in times.items():
        facts = functions[name].facts
        numbers = {"ms": _each(time, functions[name])} | rates(facts, time.median / len(functions[name].calls), job.ceilings)
        if BARE.get(facts["form"]) in medians:
            numbers["over_conv"] = time.median / medians[BARE[facts["form"]]]
        job.write(name, **facts, **numbers)


def _each(time: Quartiles, function: Function) -> dict[str, float]:
    return {key: value / len(function.calls) for key, value in time._asdict().items()}


def rates(counted: dict[str, Any], ms: float, ceilings: dict[str, float]) -> dict[str, float]:
    """GB/s and TFLOP/s; and as fractions of the ceilings, if those are measured: of_floor is the larger, least possible time over time."""
    copy, matmul = counted["bytes"] / ms * 1e3, counted["flops"] / ms * 1e3
    numbers = {"gb_per_s": copy / 1e9, "tflop_per_s": matmul / 1e12}
    if {"copy", "matmul bfloat16"} <= ceilings.keys():
        fractions = {"of_copy": copy / ceilings["copy"], "of_matmul": matmul / ceilings["matmul bfloat16"]}
        numbers |= fractions | {"of_floor": max(fractions.values())}
    return numbers
