"""Where the time of a step goes: to which backend, or to torch itself."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fused_preact.backends import PREFERENCE, backend

# What the functions of a backend are called: primitives, and whole units.
PREFIXES = ("bn_", "unit_")


def shares(step: Callable[[], object], device: torch.device | str = "cpu", insisted: str | None = None) -> dict[str, float] | None:
    """The share of each backend in the time of one call of `step`, and of "torch" the rest: stem, pooling, classifier, optimizer, Python.

    insisted: the only backend, as in `use_backend`; None: those that the table has for the device. A backend that calls another one
    gets the time of both. None on a GPU, where calls return before the work is done.
    """
    kind = torch.device(device).type
    if kind != "cpu":
        return None
    stopwatch = _Stopwatch()
    with contextlib.ExitStack() as stack:
        for name in (insisted,) if insisted else PREFERENCE[kind]:
            if not isinstance(found := backend(name), str):
                stack.enter_context(stopwatch.on(name, found))
        start = time.perf_counter()
        step()
        whole = time.perf_counter() - start
    return {name: seconds / whole for name, seconds in (stopwatch.seconds | {"torch": whole - sum(stopwatch.seconds.values())}).items()}


class _Stopwatch:
    """Adds up the seconds of the outermost calls of backends; one thread runs them all, because a CPU's backward stays in its caller's."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.running = False

    @contextlib.contextmanager
    def on(self, name: str, found: Any) -> Iterator[None]:
        """Time the functions of the backend `found` inside."""
        self.seconds[name] = 0.0
        own = {key: value for key, value in vars(found).items() if key.startswith(PREFIXES) and callable(value)}
        try:
            for key, function in own.items():
                setattr(found, key, self._timed(name, function))
            yield
        finally:
            for key, function in own.items():
                setattr(found, key, function)

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.running:
                return function(*args, **kwargs)
            self.running, start = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start
                self.running = False

        return call
