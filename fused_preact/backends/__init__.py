"""Which backend runs what: one registry, one static table, one place that chooses.

A backend is a module (or any object) with the primitives of docs/design.md as functions, and besides

    unavailable() -> str | None      why it can't be used on this machine, in a sentence
    why_not(case) -> str | None      why it can't run this case, in a sentence
    TWO_DGRADS                       in emit="dx", run dgrad twice (sums, then dx) rather than write g and read it again
    unit_fwd, unit_recompute, unit_bwd, why_not_unit    optional: whole units in one call
"""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fused_preact._text import unknown
from fused_preact.backends.records import Case, Unit

NAMES = ("cuda", "triton", "cpu", "eager")

# Static, so that the same program gives the same bits; the first backend that takes a case runs it. cuda before triton: a unit is one call
# (docs/performance.md); nobody has timed either.
PREFERENCE = {"cuda": ("cuda", "triton", "eager"), "cpu": ("cpu", "eager")}
# Of float32 where torch does not allow tf32: the cuda backend convolves it by torch's library.
PREFERENCE_OF_FLOAT32 = {"cuda": ("triton", "cuda", "eager")}

_registered: dict[str, Any] = {}
_insisted = ""


class BackendRefusal(ValueError):
    """The backend insisted on with `use_backend` can't run a case; the message is its own sentence."""


def register(name: str, found: Any) -> None:
    """Make `found` selectable by `use_backend(name)`, for tests, benchmarks and experiments. The table never chooses it."""
    _registered[name] = found
    choose.cache_clear()
    choose_unit.cache_clear()


def backend(name: str) -> Any:
    """The backend called `name`, or a sentence (str) that says why there is none."""
    return _registered[name] if name in _registered else _shipped(name)


@functools.cache
def _shipped(name: str) -> Any:
    try:
        module = importlib.import_module(f"fused_preact.backends.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"fused_preact.backends.{name}":
            raise
        return f"this version of fused_preact does not contain the {name} backend"
    return module.unavailable() or module


def available_backends() -> dict[str, str | None]:
    """Every backend by name: None if it is usable here, otherwise the reason in a sentence."""
    return {name: found if isinstance(found := backend(name), str) else None for name in NAMES}


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Insist on one backend for everything inside, process-wide like the flags of `torch.backends`.

    Forward records the choice and backward replays it, wherever it runs. Raises ValueError for an unknown or unusable backend, and
    `BackendRefusal` from a call that the backend can't run.
    """
    global _insisted
    if name not in NAMES and name not in _registered:
        raise ValueError(unknown("backend", name, NAMES))
    if isinstance(reason := backend(name), str):
        raise ValueError(f"backend {name!r} is not usable: {reason}")
    before, _insisted = _insisted, name
    try:
        yield
    finally:
        _insisted = before


def insisted() -> str:
    """The name given to the innermost `use_backend`, or "" when the table chooses. A Function records it for its backward."""
    return _insisted


def order(case: Case, insisted: str = "") -> tuple[str, ...]:
    """The names of the backends to ask, best first: the one insisted on, or those of the table."""
    if insisted:
        return (insisted,)
    table = PREFERENCE | PREFERENCE_OF_FLOAT32 if case.dtype == torch.float32 and not case.tf32 else PREFERENCE
    return table.get(case.device, ("eager",))


def candidates(case: Case, insisted: str = "") -> tuple[Any, ...]:
    """The backends of `order` that are usable here."""
    return tuple(found for name in order(case, insisted) if not isinstance(found := backend(name), str))


@functools.lru_cache(maxsize=65536)
def choose(case: Case, insisted: str = "") -> Any:
    """The backend that runs `case`; raises BackendRefusal if the one insisted on can't."""
    refused = ""
    for found in candidates(case, insisted):
        refused = found.why_not(case)
        if refused is None:
            return found
    raise BackendRefusal(f"backend {insisted!r} can't run this layer: {refused}")


@functools.lru_cache(maxsize=4096)
def choose_unit(unit: Unit, case: Case, insisted: str = "") -> Callable[..., Any] | None:
    """The backend that runs the whole `unit` in one call on inputs like `case`, or None: then it is composed of primitives."""
    for found in candidates(case, insisted):
        why_not_unit = getattr(found, "why_not_unit", None)
        if why_not_unit is not None and why_not_unit(unit, case) is None:
            return found
        if found.why_not(case) is None:
            return None
    return None
