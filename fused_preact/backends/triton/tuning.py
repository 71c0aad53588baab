"""Which tile a kernel gets: a measured one where `fused_preact.autotune` found a better, otherwise the choice of `tiles`.

Measurements live in one file for all devices and versions. It is read once, when the backend is imported, and never while a CUDA graph is
captured or a program traced: what a captured graph or a compiled program does must not depend on when somebody tuned.
"""

import functools
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import triton

from fused_preact._files import write_atomically
from fused_preact.backends.triton import tiles
from fused_preact.backends.triton.environment import interpreted
from fused_preact.backends.triton.tiles import Problem, Tile

FORMAT = 1
KINDS = ("fwd", "dgrad", "wgrad", "narrow", "fwd by library", "bwd by library")

# A Tile; None for "narrow": two kernels; True or False for "by library".
Choice = Tile | bool | None

# No file, no permission, no home, no JSON, and JSON too deep.
_UNREADABLE = (OSError, ValueError, RuntimeError)

_measured: dict[str, Choice] = {}
_seen: set[Problem] | None = None
_plans: list[Any] = []


def tile(kind: str, p: Problem) -> Tile | None:
    """The tile of a kernel ("fwd", "dgrad", "wgrad", or "narrow", which may be None)."""
    name = key(kind, p)
    if name in _measured and tiles.fits(kind, p, _measured[name]):
        return _measured[name]
    return getattr(tiles, f"{kind}_tile")(p)


def materialises(direction: str, p: Problem) -> bool:
    """Whether "fwd" or "bwd" goes through torch's library."""
    return _measured.get(key(f"{direction} by library", p), tiles.materialises(p))


def cached(plan: Callable[..., Any]) -> Callable[..., Any]:
    """`plan` computed once for the same arguments, until other choices are in use."""
    _plans.append(functools.lru_cache(maxsize=65536)(plan))
    return _plans[-1]


def key(kind: str, p: Problem) -> str:
    """A choice by name, on one device: kind, geometry, pixels and arithmetic."""
    numbers = ",".join(map(str, p.geo))
    return f"{kind}: {numbers}; {p.in_pixels}>{p.out_pixels}; {str(p.dtype).removeprefix('torch.')} {p.precision}"


def note(p: Problem) -> Problem:
    """Tell whoever records that `p` was asked for."""
    if _seen is not None:
        _seen.add(p)
    return p


@contextmanager
def recording() -> Iterator[set[Problem]]:
    """The problems that are asked for inside."""
    global _seen
    _seen = set()
    try:
        yield _seen
    finally:
        _seen = None


def use(choices: Mapping[str, Choice]) -> None:
    """Let the measured `choices` (by `key`) decide, besides those that do already."""
    _measured.update(choices)
    for plan in _plans:
        plan.cache_clear()


@contextmanager
def trying(choices: Mapping[str, Choice]) -> Iterator[None]:
    """Let `choices` decide inside."""
    before = dict(_measured)
    use(choices)
    try:
        yield
    finally:
        _measured.clear()
        use(before)


def cache_file() -> Path:
    """$XDG_CACHE_HOME/fused_preact/autotune.json, by default under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fused_preact" / "autotune.json"


def environment_of(device: torch.device) -> str:
    """What a measurement is good for: this kind of device, with these versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    return f"{name}; torch {torch.__version__}; triton {triton.__version__}"


def load() -> None:
    """Use what the cache file has for this device and these versions; a corrupt file, or one without, is ignored with a warning."""
    on_gpu = not interpreted()
    if torch.compiler.is_compiling() or (on_gpu and torch.cuda.is_current_stream_capturing()):
        return
    path, environment = "", environment_of(torch.device("cuda" if on_gpu else "cpu"))
    try:
        path = cache_file()
        if not path.is_file():
            return
        choices = _choices(_read(path), environment)
    except _UNREADABLE as error:
        warnings.warn(f"fused_preact ignores the tuning cache {path}, which can't be read: {error}", stacklevel=2)
        return
    if choices is None:
        warnings.warn(f"fused_preact ignores the tuning cache {path}, which has nothing for {environment}: autotune again", stacklevel=2)
        return
    use(choices)


def save(environment: str, choices: Mapping[str, Choice]) -> Path:
    """Add `choices` to the cache file; what it has for others stays, and what can't be read is replaced."""
    path, entries, own = cache_file(), {}, {}
    with suppress(*_UNREADABLE):
        entries = _read(path)
        own = _choices(entries, environment) or {}
    entries[environment] = own | dict(choices)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, "entries": entries}, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def _read(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict) or document.get("format") != FORMAT or not isinstance(document.get("entries"), dict):
        raise ValueError(f"it is not of format {FORMAT}")
    return document["entries"]


def _choices(entries: dict[str, Any], environment: str) -> dict[str, Choice] | None:
    own = entries.get(environment)
    if own is None:
        return None
    if not isinstance(own, dict):
        raise ValueError(f"what it has for {environment} is {own!r}")
    return {name: _decoded(name, value) for name, value in own.items()}


def _decoded(name: str, value: Any) -> Choice:
    kind = name.partition(":")[0]
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kernel")
    if kind.endswith("by library"):
        if not isinstance(value, bool):
            raise ValueError(f"{name!r} is {value!r}")
        return value
    if value is None and kind == "narrow":
        return None
    if not isinstance(value, list) or len(value) != len(Tile._fields) or not all(type(n) is int and 0 < n < 2**16 for n in value):
        raise ValueError(f"{name!r} is {value!r}")
    return Tile(*value)
