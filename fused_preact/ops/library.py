"""How a primitive becomes a custom operator: schema, fake, the body of every device, and a formula that refuses to differentiate.

Nobody calls the operators one by one: `backend_for` gives either the backend that runs a layer or, when something watches, `Operators`,
which has the same functions and goes through the operators.
"""

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake

from fused_preact.backends import choose
from fused_preact.backends.records import Case, Conv, allows_tf32

NAMESPACE = "fused_preact"
LIBRARY = Library(NAMESPACE, "DEF")
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


class Operators:
    """The primitives as operators; each records the backend insisted on ("" for none), so that a compiled graph replays it."""

    TWO_DGRADS = False

    def __init__(self, insisted: str) -> None:
        self.insisted = insisted


def traced(x: Tensor) -> bool:
    """Whether something watches: a tracer, a dispatch mode, or autograd (in a backward with create_graph=True); or x has no data.

    Then an operator must be seen as one; otherwise the backend is called straight away, without the dispatcher.
    """
    return torch.compiler.is_compiling() or torch.is_grad_enabled() or torch._C._len_torch_dispatch_stack() > 0 or x.is_meta


def backend_for(x: Tensor, weight: Tensor | None, conv: Conv | None, insisted: str) -> Any:
    """Whose primitives run a layer on x: the chosen backend, the same in forward and backward, or `Operators` when traced."""
    return Operators(insisted) if traced(x) else chosen(x, weight, conv, insisted)


def chosen(x: Tensor, weight: Tensor | None, conv: Conv | None, insisted: str) -> Any:
    """The backend that runs a layer (without weight: a norm alone) on x."""
    if weight is None:
        return choose(Case(x.device.type, x.dtype, x.shape), insisted)
    return choose(Case(x.device.type, x.dtype, x.shape, weight.shape, weight.dtype, conv, tf32=allows_tf32(weight.dtype)), insisted)


def primitive(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define the operator of `schema`, whose last argument is `str insisted`, and make it a method of `Operators`.

    The function decorated is its body on every device; `fake` gives shapes, dtypes and strides.
    """

    def register(body: Callable[..., Any]) -> Callable[..., Any]:
        op = define(schema, body, fake)

        @functools.wraps(body)
        def method(self: Operators, *args: Any) -> Any:
            return op(*args, self.insisted)

        setattr(Operators, body.__name__, method)
        body.fake = fake
        return body

    return register


def define(schema: str, body: Callable[..., Any], fake: Callable[..., Any]) -> torch._ops.OpOverload:
    """Register one operator and return it."""
    name = schema.split("(")[0]
    LIBRARY.define(schema, tags=TAGS)
    LIBRARY.impl(name, body, "CompositeExplicitAutograd")
    register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    if not op._schema.is_mutable:
        register_autograd(f"{NAMESPACE}::{name}", functools.partial(_refuse, name), setup_context=_keep_nothing, lib=LIBRARY)
    return op


def _keep_nothing(ctx: Any, inputs: Any, output: Any) -> None:
    pass


def _refuse(name: str, ctx: Any, *grads: Any) -> NoReturn:
    raise RuntimeError(
        f"fused_preact: {name} can't be differentiated; second derivatives (create_graph=True) of a fused network are not supported, "
        "compute them on the unfused network"
    )
