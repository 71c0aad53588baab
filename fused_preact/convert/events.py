"""Who is told what becomes of the results of fused norms: `explain`, while it runs a network."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol


class Observer(Protocol):
    """Is told of every convolution and unit that is fused, and of every result that is written after all, with the function that asked."""

    def fused(self, conv: Any) -> None: ...

    def unit(self, layers: Any) -> None: ...

    def written(self, node: Any, func: Callable[..., Any]) -> None: ...


_observers: list[Observer] = []


@contextlib.contextmanager
def observing(observer: Observer) -> Iterator[None]:
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)
