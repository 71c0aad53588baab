"""`explain`: what of a network is fused, where it runs, and what is not fused and why."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from fused_preact.backends import backend, choose, order
from fused_preact.backends.records import Case, allows_tf32
from fused_preact.convert import events
from fused_preact.convert.deferred import Deferred, real
from fused_preact.convert.fuse import fuse, refusal
from fused_preact.convert.nodes import Activation, Convolution, Norm
from fused_preact.convert.norms import FusedNorm
from fused_preact.modules import PreActConv2d, PreActResidual
from fused_preact.modules.children import has_hooks


class Triple(NamedTuple):
    """A norm and a convolution that ran as one. unit: which residual unit it is part of, counted from 1; 0: none.

    refused: the backends before the one that ran it, each with its reason.
    """

    norm: str
    conv: str
    relu: bool
    shape: tuple[int, ...]
    backend: str
    refused: tuple[str, ...]
    unit: int


class Explanation(NamedTuple):
    """What `explain` found; str() of it is a report.

    fused: every norm and convolution that ran as one.  triples: norms that were fused, once for each time that they ran; shared: those
    of them that two convolutions or more read.  units: whole residual units.  skipped: norms that ran unfused, with the reason.  own:
    modules of fused_preact's own, which are fused anyway.
    """

    fused: tuple[Triple, ...]
    triples: int
    shared: int
    units: int
    skipped: tuple[tuple[str, str], ...]
    own: int

    def __str__(self) -> str:
        lines = [
            f"{self.triples} fused triples, {self.shared} of them shared by two convolutions; {self.units} whole residual units; "
            f"{len(self.skipped)} norms not fused; {self.own} modules of fused_preact's own"
        ]
        for t in self.fused:
            unit = f", unit {t.unit}" if t.unit else ""
            refused = f" ({'; '.join(t.refused)})" if t.refused else ""
            lines.append(
                f"  {t.norm} -> {'ReLU -> ' if t.relu else ''}{t.conv} on {'x'.join(map(str, t.shape))}: {t.backend}{refused}{unit}"
            )
        lines += [f"  not fused: {name}: {reason}" for name, reason in self.skipped]
        return "\n".join(lines)


def explain(model: nn.Module, example: Tensor, *others: Any) -> Explanation:
    """Run a copy of `model` once on `example` (and `others`) and report what is fused, where, by which backend, and what is not and why.

    Args:
        model: fused or not; of one that is not, what `fuse` would do. It is run in the mode it is in, and does not change.
        example: a batch as in training, on the model's device, in the memory format that it will have.
    """
    model = copy.deepcopy(model)
    if not any(isinstance(module, FusedNorm) for module in model.modules()):
        model = fuse(model, inplace=True)
    devices = [example.device] if example.is_cuda else []
    record = _Record(model)
    with torch.random.fork_rng(devices), events.observing(record), torch.enable_grad():
        # A result that nobody uses would be left uncomputed.
        tree_map_only(Deferred, real, model(example, *others))
    return record.explanation()


class _Record:
    """An observer that keeps what it is told, by names of modules."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: name or type(model).__name__ for name, module in model.named_modules()}
        # By memory: a frozen weight is handed on without its history, as another tensor.
        self.owners = {p.data_ptr(): name for module, name in self.names.items() for p in module._parameters.values() if p is not None}
        self.convs: list[tuple[Convolution, Norm, Triple]] = []
        self.unit_of: dict[int, int] = {}
        self.units = 0
        self.uses: dict[nn.Module, set[str]] = {}

    def fused(self, conv: Convolution) -> None:
        norm = conv.activation.norm
        dtype = conv.dtype or conv.weight.dtype
        case = Case(norm.x.device.type, norm.x.dtype, norm.x.shape, conv.weight.shape, dtype, conv.conv, tf32=allows_tf32(dtype))
        name, refused = _chosen(case, norm.insisted)
        owner = self.owners.get(conv.weight.data_ptr(), "a convolution")
        triple = Triple(self._name(norm.site), owner, conv.activation.relu, tuple(norm.x.shape), name, refused, 0)
        self.convs.append((conv, norm, triple))

    def unit(self, layers: list[Convolution]) -> None:
        self.units += 1
        self.unit_of.update((id(layer), self.units) for layer in layers)

    def written(self, node: Activation, func: Callable[..., Any]) -> None:
        self.uses.setdefault(node.norm.site, set()).add(getattr(func, "__name__", str(func)))

    def explanation(self) -> Explanation:
        triples = tuple(triple._replace(unit=self.unit_of.get(id(conv), 0)) for conv, _, triple in self.convs)
        readers = Counter((id(norm), triple.relu) for _, norm, triple in self.convs)
        fused = {norm.site for _, norm, _ in self.convs}
        own = sum(isinstance(module, PreActResidual | PreActConv2d) for module in self.names)
        inside = {child for module in self.names if isinstance(module, PreActResidual | PreActConv2d) for child in module.modules()}
        skipped = tuple(
            (name, self._reason(module))
            for module, name in self.names.items()
            if isinstance(module, _BatchNorm) and module not in fused and module not in inside
        )
        shared = sum(count > 1 for count in readers.values())
        return Explanation(triples, len(readers), shared, self.units, skipped, own)

    def _name(self, site: nn.Module) -> str:
        return self.names.get(site, type(site).__name__)

    def _reason(self, norm: nn.Module) -> str:
        if not isinstance(norm, FusedNorm):
            return refusal(norm) or "it is not fused"
        if norm in self.uses:
            return f"its result goes to {', '.join(sorted(self.uses[norm]))}"
        return "it is watched by hooks" if has_hooks(norm) else "its result is used by no convolution, or it was not called"


def _chosen(case: Case, insisted: str) -> tuple[str, tuple[str, ...]]:
    """The backend that runs a case, by name, and why those before it do not."""
    found, refused = choose(case, insisted), []
    for name in order(case, insisted):
        candidate = backend(name)
        if candidate is found:
            return name, tuple(refused)
        refused.append(f"{name}: {candidate if isinstance(candidate, str) else candidate.why_not(case)}")
    raise AssertionError("a backend that is not in its own table")
