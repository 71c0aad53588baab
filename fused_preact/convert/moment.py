"""The moment at which a result was asked for: what is recorded later is recorded as it would have been then."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

_hooks: Any = torch._C._autograd


def saving_is_watched() -> bool:
    """Whether somebody looks at what is saved for backward: activation checkpointing, offloading."""
    return _hooks._top_saved_tensors_default_hooks(False) is not None


class Moment(NamedTuple):
    """grad: whether gradients were recorded.  watched: whether somebody looked at what is saved."""

    grad: bool
    watched: bool

    @classmethod
    def now(cls) -> "Moment":
        return cls(torch.is_grad_enabled(), saving_is_watched())

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Go back to it. A region of checkpointed code, say, must not save what was called before it began."""
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise RuntimeError("fused_preact: a fused result was first used inside a torch.func transform (vmap, grad, ...): use it before")
        hidden = []
        while not self.watched and (pair := _hooks._top_saved_tensors_default_hooks(False)) is not None:
            hidden.append(pair)
            _hooks._pop_saved_tensors_default_hooks()
        try:
            with torch.set_grad_enabled(self.grad):
                yield
        finally:
            for pair in reversed(hidden):
                _hooks._push_saved_tensors_default_hooks(*pair)
