"""Who is told what becomes of the results of fused norms: `explain`, while it runs a network."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol


class Observer(Protocol):
    """Is told of every convolution and unit that is fused, and of every activation that is written, with the function that asked for it."""

    def fused(self, conv: Any) -> None: ...

    def unit(self, layers: Sequence[Any]) -> None: ...

    def written(self, activation: Any, func: Callable[..., Any]) -> None: ...


_observers: list[Observer] = []


@contextlib.contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Tell `observer` what happens inside, in whatever thread."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def tell_fused(conv: Any) -> None:
    for observer in _observers:
        observer.fused(conv)


def tell_unit(layers: Sequence[Any]) -> None:
    for observer in _observers:
        observer.unit(layers)


def tell_written(nodes: Sequence[Any], func: Callable[..., Any]) -> None:
    """nodes: what a function that is not fused takes."""
    for observer in _observers:
        for node in nodes:
            if hasattr(node, "norm"):
                observer.written(node, func)
