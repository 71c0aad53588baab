"""The moment at which a result was asked for: what is recorded later is recorded as it would have been then."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

_hooks: Any = torch._C._autograd


def transformed() -> bool:
    """Whether a torch.func transform runs: tensors are not what they seem, and kernels would see them."""
    return torch._C._functorch.peek_interpreter_stack() is not None


class Moment(NamedTuple):
    """grad: whether gradients were recorded.  hooks: of who looked at what is saved for backward (activation checkpointing, offloading)."""

    grad: bool
    hooks: tuple[Any, Any] | None

    @classmethod
    def now(cls) -> "Moment":
        return cls(torch.is_grad_enabled(), _hooks._top_saved_tensors_default_hooks(False))

    @property
    def watched(self) -> bool:
        return self.hooks is not None

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Go back to it. A region of checkpointed code, say, must not save what was called before it began, be that in another region."""
        hidden = []
        while (pair := _hooks._top_saved_tensors_default_hooks(False)) not in (None, self.hooks):
            hidden.append(pair)
            _hooks._pop_saved_tensors_default_hooks()
        try:
            with torch.set_grad_enabled(self.grad):
                yield
        finally:
            for pair in reversed(hidden):
                _hooks._push_saved_tensors_default_hooks(*pair)
