"""How this project times things: interleaved rounds, medians and quartiles.

Machines drift (clocks, temperature, neighbours). Functions that take turns see the same drift, so their ratio survives it.
"""

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch


class Quartiles(NamedTuple):
    """Of times, in milliseconds a call."""

    median: float
    q1: float
    q3: float


def quartiles(samples: Sequence[float]) -> Quartiles:
    """Median and quartiles of at least one sample, interpolated between neighbours."""
    if len(samples) == 1:
        return Quartiles(samples[0], samples[0], samples[0])
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Quartiles(median, q1, q3)


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    device: torch.device | str = "cpu",
    warmup: int = 2,
    sample_ms: float = 20.0,
    each_round: Callable[[], object] | None = None,
) -> dict[str, Quartiles]:
    """Time `functions` in turns.

    Args:
        functions: what to call, by name.
        rounds: samples of each; every round takes one of each, and starts with another one.
        device: where they compute. On a GPU the clock is the GPU's, from an idle stream to the end of the last kernel.
        warmup: calls of each before the first round, at least 1.
        sample_ms: short functions are called repeatedly until a sample takes about so long.
        each_round: called, untimed, when a round begins.
    """
    names = list(functions)
    clock = _cuda_ms if torch.device(device).type == "cuda" else _cpu_ms
    repeats = {}
    for name, function in functions.items():
        for _ in range(warmup - 1):
            function()
        repeats[name] = max(1, math.ceil(sample_ms / max(clock(function, 1), 1e-6)))
    samples: dict[str, list[float]] = {name: [] for name in names}
    with _no_garbage_collection():
        for turn in range(rounds):
            if each_round is not None:
                each_round()
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(clock(functions[name], repeats[name]))
    return {name: quartiles(taken) for name, taken in samples.items()}


def _cpu_ms(function: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) * 1e3 / repeats


def _cuda_ms(function: Callable[[], object], repeats: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
