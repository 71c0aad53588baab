"""What a deferred tensor stands for: the activation of a norm, a convolution of it, or the sum of that and a shortcut.

Data is computed once it is needed, by the primitives and without autograd. History is recorded when somebody takes the tensor itself: so
the layers of a residual unit, called one by one, become one Function (`sums.py`).

A node has `tensor`, the result if it is there; real(), the result with its history; data(), without it; vjp, how a gradient goes on
where the deferred tensor itself went into a graph (`deferred.py`); fused, whether a fused function has read it: hooks would come too late.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fused_preact.backends.records import Conv, Layer
from fused_preact.convert.moment import Moment, transformed
from fused_preact.functional import Group
from fused_preact.functional.bn_relu import BNReLU, bn_relu_grads
from fused_preact.functional.bn_relu_conv2d import BNReLUConv2d, Call, Done, cast
from fused_preact.ops import backend_for

Grads = Sequence[Tensor | None]


def version_of(t: Tensor) -> int | None:
    """How often t was changed in place; None where torch does not count."""
    return None if t.is_inference() else t._version


def as_it_is(t: Tensor | None) -> Tensor | None:
    """t, without history if it needs no gradient now: later it might."""
    return t if t is None or t.requires_grad else t.detach()


class Value:
    """A tensor that exists."""

    fused = False

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def real(self) -> Tensor:
        return self.tensor

    def data(self) -> Tensor:
        return self.tensor.detach()

    def vjp(self, grad: Tensor, need: Sequence[bool]) -> Grads:
        return (grad,)


class Norm(NamedTuple):
    """A norm that was called: its statistics are taken, nothing is normalised yet.

    origin: what it was called with.  x: the same as a tensor that exists, without history where `source`, the convolution that computed
    it, has not recorded it.  version: of x at the call.  bn: see the contract.  layer: without a convolution.
    """

    site: nn.Module
    origin: Tensor
    x: Tensor
    source: "Convolution | None"
    version: int | None
    bn: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    layer: Layer
    group: Group | None
    insisted: str

    def input(self) -> Tensor:
        """x with its history."""
        return self.x if self.source is None else self.source.real()

    def constant(self) -> "Norm":
        """The same for who called it without gradients: nobody who uses the result gets any through it."""
        x, affine = self.x.detach(), [None if t is None else t.detach() for t in (self.gamma, self.beta)]
        return self._replace(origin=x, x=x, source=None, gamma=affine[0], beta=affine[1])

    def check(self) -> None:
        """Refuse to go on if x is not what it was at the call, or can't be read."""
        if transformed():
            raise RuntimeError("fused_preact: a fused result was first used inside a torch.func transform (vmap, grad, ...): use it before")
        if version_of(self.x) != self.version:
            raise RuntimeError(
                f"fused_preact: the input of a {type(self.site).__name__}, shape {tuple(self.x.shape)}, was changed in place between the "
                "norm's call and the use of its result: change a copy instead, or call fused_preact.unfuse on this part of the network"
            )


class Activation:
    """z = bn(x), or relu(bn(x))."""

    fused = False

    def __init__(self, norm: Norm, relu: bool) -> None:
        self.norm, self.relu, self.moment = norm, relu, Moment.now()
        self.tensor: Tensor | None = None
        self.version: int | None = None

    def _call(self) -> Call:
        norm = self.norm
        return Call(norm.layer._replace(relu=self.relu), False, None, norm.group, norm.insisted, Done(norm.bn))

    def changed(self) -> bool:
        """Whether z was given out and somebody changed it in place: computing it again would not do."""
        return self.tensor is not None and version_of(self.tensor) != self.version

    def real(self) -> Tensor:
        if self.tensor is None:
            norm = self.norm
            norm.check()
            with self.moment.again():
                self.tensor = BNReLU.apply(self._call(), norm.input(), None, norm.gamma, norm.beta, None, None, None)
            self.version = version_of(self.tensor)
        return self.tensor

    def data(self) -> Tensor:
        if self.tensor is not None:
            return self.tensor.detach()
        norm = self.norm
        norm.check()
        with torch.no_grad():
            return backend_for(norm.x, None, None, norm.insisted).bn_relu(norm.x, norm.bn, self.relu)

    def vjp(self, dz: Tensor, need: Sequence[bool]) -> Grads:
        """Gradients of x, gamma and beta."""
        norm = self.norm
        dx, dgamma, dbeta = bn_relu_grads(self._call(), dz, norm.x, norm.bn, need[0])
        return dx, cast(dgamma, norm.gamma.dtype) if need[1] else None, cast(dbeta, norm.beta.dtype) if need[2] else None


class Convolution:
    """y = conv2d(z, weight) + bias of an activation z that is never written. dtype: that of autocast, None outside it."""

    fused = False

    def __init__(self, norm: Norm, relu: bool, weight: Tensor, bias: Tensor | None, conv: Conv, dtype: torch.dtype | None) -> None:
        # Its own: what becomes of the activation that others hold is not its business.
        self.activation = Activation(norm, relu)
        self.weight, self.bias, self.conv = as_it_is(weight), as_it_is(bias), conv
        self.dtype, self.moment = dtype, self.activation.moment
        self.versions = self._versions()
        self.used: Tensor | None = None
        self.tensor: Tensor | None = None
        self.stats: Tensor | None = None
        self.version: int | None = None
        self.recorded = False
        # Layers in a row that nobody has taken a result of.
        self.depth = 1 if norm.source is None else 1 + norm.source.depth

    @property
    def layer(self) -> Layer:
        return self.activation.norm.layer._replace(conv=self.conv, relu=self.activation.relu)

    def _versions(self) -> tuple[int | None, ...]:
        weight, bias = self.weight, self.bias
        memory = weight.data_ptr(), weight.untyped_storage().nbytes()
        return version_of(weight), None if bias is None else version_of(bias), *memory

    def check(self) -> None:
        """Refuse to go on if a tensor is not what it was at the call."""
        self.activation.norm.check()
        if self._versions() != self.versions:
            raise RuntimeError(
                f"fused_preact: the weight or bias of a convolution, weight of shape {tuple(self.weight.shape)}, was changed in place or "
                "given back before the result was first used: use it before, or call fused_preact.unfuse on this part of the network"
            )

    def run(self, residual: Tensor | None, want_stats: bool) -> tuple[Tensor, Tensor | None]:
        """y + residual, and its statistics if wanted, without history."""
        norm = self.activation.norm
        self.check()
        with torch.no_grad():
            self.used = self.weight if self.dtype is None else self.weight.to(self.dtype)
            bias = self.bias if self.dtype is None or self.bias is None else self.bias.to(self.dtype)
            run = backend_for(norm.x, self.used, self.conv, norm.insisted)
            return run.bn_relu_conv2d_fwd(norm.x, norm.bn, self.used, bias, residual, *self.conv, self.activation.relu, want_stats, None)

    def record(self, y: Tensor, residual: Tensor | None) -> Tensor:
        """y, which `run` computed, with its history."""
        norm = self.activation.norm
        self.check()
        call = Call(self.layer, False, self.dtype, norm.group, norm.insisted, Done(norm.bn, self.used, y))
        inputs = (norm.input(), None, norm.gamma, norm.beta, None, None, None, self.weight, self.bias, residual)
        return BNReLUConv2d.apply(call, *inputs)[0]

    def computed(self, want_stats: bool = False) -> tuple[Tensor, Tensor | None]:
        """y, without history where nobody has taken it; to the first who asks its statistics, if they were wanted when it was computed."""
        if self.tensor is None:
            self.tensor, self.stats = self.run(None, want_stats)
            self.version = version_of(self.tensor)
        stats, self.stats = self.stats if version_of(self.tensor) == self.version else None, None
        return self.tensor, stats

    def real(self) -> Tensor:
        if self.tensor is None:
            self.computed()
        if self.moment.grad and not self.recorded:
            with self.moment.again():
                self.tensor = self.record(self.tensor, None)
            self.recorded = True
        return self.tensor

    def data(self) -> Tensor:
        return (self.computed()[0] if self.tensor is None else self.tensor).detach()

    def vjp(self, dy: Tensor, need: Sequence[bool]) -> Grads:
        """Gradients of z, weight and bias."""
        z = self.activation.data()
        dtype = self.dtype or z.dtype
        sizes = None if self.bias is None else [self.bias.numel()]
        operands = (dy.to(dtype), z.to(dtype), self.weight.detach().to(dtype))
        grads = torch.ops.aten.convolution_backward(*operands, sizes, *self.conv[:3], False, [0, 0], self.conv.groups, list(need))
        return [cast(grad, t.dtype) if wanted else None for grad, t, wanted in zip(grads, (z, self.weight, self.bias), need, strict=True)]
