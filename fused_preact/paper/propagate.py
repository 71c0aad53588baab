"""Equations (3) to (8) of the paper, measured: how a signal goes through the residual units and how its gradient comes back.

"Identity Mappings in Deep Residual Networks" (He et al. 2016), section 2 and 3. The network is the plain one of `reference_model`, which
hooks can look into; norms are Euclidean, of the tensors of the whole batch, and E is the batch's mean cross-entropy.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fused_preact.models.paper import BNAfterAddition, PaperResNet, PaperUnit
from fused_preact.models.paper_shortcuts import ConstantScaling, Dropout, Gate

# "Arbitrarily small" weights, after equation (5).
SMALL = 1e-3


class Moments(NamedTuple):
    """Over all elements of a tensor; the deviation is the biased one."""

    mean: float
    std: float


class WeightLayer(NamedTuple):
    """input: what the convolution `name` of a unit reads.  before: what the ReLU that made it read; None where no ReLU did."""

    name: str
    input: Moments
    before: Moments | None


class Unit(NamedTuple):
    """Unit number l, from 0.

    stage: from 1.  shortcut: "identity", "pad", "projection" or "none", which is its shape alone.
    signal, residual, gradient: norms of x_l, of F(x_l) as the branch ends, before it is scaled or gated, and of dE/dx_l.
    shortcut_gradient: norm of the part of dE/dx_l that came back through shortcuts alone, from the last unit on.
    scale: lambda_l of equation (6), by which the shortcut is multiplied; of dropout the mean of its mask, of a gate that of 1 - g.
    end: L, where the unit's `Run` ends; None of units that change shape or activate their shortcut (footnote 1).
    product: the lambdas of l to L - 1, multiplied, which is what equation (8) predicts for shortcut_gradient at l over that at L; None
        without an `end`.
    """

    index: int
    stage: int
    shortcut: str
    signal: float
    residual: float
    gradient: float
    shortcut_gradient: float
    scale: float
    end: int | None
    product: float | None
    layers: tuple[WeightLayer, ...]


class Run(NamedTuple):
    """Units `first` to `end` - 1, one after the other without a change of shape: how wrong the equations for x_L are there.

    equation4: largest |x_L - x_l - sum F| / |x_L| of all l.  equation7: the same with the lambdas; None unless they are constants.
    """

    first: int
    end: int
    equation4: float
    equation7: float | None


class Small(NamedTuple):
    """Norms of dE/dx_0 and dE/dx_L when the weights W_l of every F are multiplied by `factor`, and the lambdas of all units, multiplied.

    Equation (5): without a scale dE/dx_0 stays; equation (8): with one it goes the way of `product`.
    """

    factor: float
    first: float
    last: float
    product: float


class Propagation(NamedTuple):
    """signal, gradient: norms of x_L behind the last unit and of dE/dx_L."""

    loss: float
    units: tuple[Unit, ...]
    signal: float
    gradient: float
    runs: tuple[Run, ...]
    small: Small


class _Trace(NamedTuple):
    """x: x_0 to x_L, with their gradients; branches: F(x_0) to F(x_{L-1}); layers, gates (the mean of 1 - g): of every unit."""

    loss: float
    x: list[Tensor]
    branches: list[Tensor]
    layers: list[list[WeightLayer]]
    gates: dict[int, float]


def measure(model: PaperResNet, images: Tensor, labels: Tensor, *, seed: int = 0) -> Propagation:
    """One batch forward and back, in training mode, so with its own statistics in every norm; the model stays as it was.

    Args:
        model: of `reference_model("resnet...")`, not fused, float32 or float64, on any device.
        images: (N, in_channels, 32, 32) of the model's dtype, on its device; N > 1.
        labels: (N,) int64, below the number of classes.
        seed: of the masks of dropout.
    """
    units = model.units()
    whole, alone = (_trace(model, images, labels, seed, branches=branches) for branches in (True, False))
    scales = _scales(units, whole)
    spans = list(_spans(units))
    return Propagation(
        whole.loss,
        tuple(_units(model, whole, alone, scales, spans)),
        _norm(whole.x[-1]),
        _norm(whole.x[-1].grad),
        tuple(_run(units[first:end], whole, first, end) for first, end in spans),
        small_residuals(model, images, labels, seed=seed),
    )


def small_residuals(model: PaperResNet, images: Tensor, labels: Tensor, *, factor: float = SMALL, seed: int = 0) -> Small:
    """dE/dx_0 with small residual weights (equation 5); arguments as of `measure`.

    `factor` multiplies weights and biases of all layers of a branch, its norms too, which would take it back otherwise: their eps then
    outweighs the variance. Norms whose outputs the shortcut carries as well are no part of F and keep theirs.
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in (parameter for unit in model.units() for parameter in _weights(unit)):
            parameter *= factor
    trace = _trace(model, images, labels, seed)
    return Small(factor, _norm(trace.x[0].grad), _norm(trace.x[-1].grad), math.prod(_scales(model.units(), trace)))


def _weights(unit: PaperUnit) -> Iterator[nn.Parameter]:
    """W_l: those of F alone."""
    norms = [bn for _, bn in unit.pairs()]
    outside = norms[-1:] if isinstance(unit, BNAfterAddition) else norms[:1] if unit.norm_first and unit.shared else []
    for layer in (layer for pair in unit.pairs() for layer in pair):
        if layer not in outside:
            yield from layer.parameters()


class _Activations(TorchFunctionMode):
    """What every ReLU read, by what came out, which is kept so that no other tensor takes its id."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, tuple[Tensor, Moments]] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is F.relu:
            self.read[id(out)] = out, _moments(args[0])
        return out

    def before(self, x: Tensor) -> Moments | None:
        return self.read[id(x)][1] if id(x) in self.read else None


def _trace(model: PaperResNet, images: Tensor, labels: Tensor, seed: int, *, branches: bool = True) -> _Trace:
    """A training step's forward and backward; branches=False: the same forward, and nothing goes back through any F."""
    # A copy, for the hooks and for the statistics that the norms gather.
    model = copy.deepcopy(model).train()
    units, activations = model.units(), _Activations()
    trace = _Trace(0.0, [], [], [[] for _ in units], {})

    def keep(x: Tensor) -> None:
        if x.requires_grad:
            x.retain_grad()
        trace.x.append(x)

    def joining(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, s, h = args
        trace.branches.append(h.detach())
        return x, s, h if branches else h.detach()

    def layer(i: int, name: str) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Tensor]) -> None:
            trace.layers[i].append(WeightLayer(name, _moments(args[0]), activations.before(args[0])))

        return look

    def gate(i: int) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
            trace.gates[i] = 1 - torch.sigmoid(out.detach()).mean().item()

        return look

    for i, unit in enumerate(units):
        unit.register_forward_pre_hook(lambda module, args: keep(args[0]))
        unit.join.register_forward_pre_hook(joining)
        for name, module in unit.named_modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(layer(i, name))
        if isinstance(unit.join, Gate):
            unit.join.gate.register_forward_hook(gate(i))
    units[-1].register_forward_hook(lambda module, args, out: keep(out))

    devices = [images.device] if images.is_cuda else []
    with torch.random.fork_rng(devices), activations:
        torch.manual_seed(seed)
        loss = F.cross_entropy(model(images), labels)
    loss.backward()
    return trace._replace(loss=loss.item())


def _scales(units: Sequence[PaperUnit], trace: _Trace) -> list[float]:
    """lambda_l of every unit."""

    def scale(i: int, join: nn.Module) -> float:
        if isinstance(join, ConstantScaling):
            return join.shortcut_scale
        return join.mean if isinstance(join, Dropout) else trace.gates.get(i, 1.0)

    return [scale(i, unit.join) for i, unit in enumerate(units)]


def _spans(units: Sequence[PaperUnit]) -> Iterator[tuple[int, int]]:
    """First and end of every run of units whose shortcuts are multiples of x_l; of the plain net, of those that keep its shape."""

    def runs(unit: PaperUnit) -> bool:
        if unit.kind == "none":
            return unit.stride == 1 and unit.conv1.in_channels == unit.out_channels
        return unit.kind == "identity" and not unit.shared

    for runs_on, group in groupby(range(len(units)), key=lambda i: runs(units[i])):
        if runs_on:
            first, *others = group
            yield first, (others or [first])[-1] + 1


def _units(model: PaperResNet, whole: _Trace, alone: _Trace, scales: Sequence[float], spans: Sequence[tuple[int, int]]) -> Iterator[Unit]:
    end_of = {i: end for first, end in spans for i in range(first, end)}
    stages = [stage for stage, name in enumerate(model.stages, 1) for _ in getattr(model, name)]
    for i, unit in enumerate(model.units()):
        end = end_of.get(i)
        yield Unit(
            index=i,
            stage=stages[i],
            shortcut=unit.kind,
            signal=_norm(whole.x[i]),
            residual=_norm(whole.branches[i]),
            gradient=_norm(whole.x[i].grad),
            shortcut_gradient=_norm(alone.x[i].grad),
            scale=scales[i],
            end=end,
            product=None if end is None else math.prod(scales[i:end]),
            layers=tuple(whole.layers[i]),
        )


def _run(units: Sequence[PaperUnit], trace: _Trace, first: int, end: int) -> Run:
    joins = [unit.join for unit in units]
    if isinstance(joins[0], ConstantScaling):
        factors = [(join.shortcut_scale, join.branch_scale) for join in joins]
    else:
        factors = None if isinstance(joins[0], Gate | Dropout) else [(1.0, 1.0)] * len(joins)
    x, branches = trace.x[first : end + 1], trace.branches[first:end]
    return Run(first, end, _error(x, branches, [(1.0, 1.0)] * len(joins)), None if factors is None else _error(x, branches, factors))


def _error(x: Sequence[Tensor], branches: Sequence[Tensor], factors: Sequence[tuple[float, float]]) -> float:
    """The largest relative error of equation (7) for x[-1] from any x before it; `factors` are those of x_i and of F(x_i)."""
    last = x[-1].detach().double()
    residuals, product, worst = torch.zeros_like(last), 1.0, 0.0
    # Of a signal that has died out the error itself.
    size = _norm(last) or 1.0
    for x_i, branch, (of_shortcut, of_branch) in zip(x[-2::-1], branches[::-1], factors[::-1], strict=True):
        residuals += product * of_branch * branch.double()
        product *= of_shortcut
        worst = max(worst, _norm(last - product * x_i.detach().double() - residuals) / size)
    return worst


def _norm(x: Tensor | None) -> float:
    """0 for a gradient that never came."""
    return 0.0 if x is None else torch.linalg.vector_norm(x.detach(), dtype=torch.float64).item()


def _moments(x: Tensor) -> Moments:
    std, mean = torch.std_mean(x.detach().double(), correction=0)
    return Moments(mean.item(), std.item())
