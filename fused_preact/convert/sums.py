"""A convolution and a shortcut, added before they are written; and where both begin at one norm, the residual unit that they are."""

import torch
from torch import Tensor

from fused_preact.backends.records import Unit
from fused_preact.convert import events
from fused_preact.convert.nodes import Activation, Convolution, Norm, Value
from fused_preact.convert.statistics import remember
from fused_preact.functional.preact_unit import Chain, PreActUnits, UnitDone

Node = Value | Activation | Convolution


def add_shortcut(conv: Convolution, shortcut: Node) -> Tensor:
    """conv + shortcut, a residual unit if it is one. Now, and not when it is used: the shortcut may be changed until then."""
    y, stats = conv.run(shortcut.data(), conv.layer.batch)
    layers = layers_of_unit(conv, shortcut)
    y = record_unit(y, layers, shortcut) if layers else conv.record(y, shortcut.real())
    if stats is not None:
        remember(y, stats)
    return y


def layers_of_unit(last: Convolution, shortcut: Node) -> list[Convolution]:
    """The layers from the norm at which `shortcut` begins to `last`; none if they are no unit that has a function."""
    layers = [last]
    while not _begins_at(layers[0], shortcut):
        source = layers[0].activation.norm.source
        if source is None or source.recorded:
            return []
        layers.insert(0, source)
    norms = [layer.activation.norm for layer in layers]
    alike = {(layer.dtype, layer.moment, norm.insisted) for layer, norm in zip(layers, norms, strict=True)}
    groups = {norm.group for norm in norms if norm.layer.batch}
    plain = all(layer.bias is None for layer in layers)
    return layers if plain and len(alike) == 1 and len(groups) <= 1 else []


def _begins_at(layer: Convolution, shortcut: Node) -> bool:
    """Whether the shortcut is the input of the layer's norm, or a convolution of the layer's activation."""
    return shortcut.tensor is layer.activation.norm.x or _is_projection(shortcut, layer)


def _is_projection(shortcut: Node, layer: Convolution) -> bool:
    if not isinstance(shortcut, Convolution) or shortcut.recorded or shortcut.bias is not None:
        return False
    same_norm: Norm = shortcut.activation.norm
    own = (shortcut.activation.relu, shortcut.dtype, shortcut.moment)
    return same_norm is layer.activation.norm and own == (layer.activation.relu, layer.dtype, layer.moment)


def record_unit(y: Tensor, layers: list[Convolution], shortcut: Node) -> Tensor:
    """y of a unit whose layers were computed one by one, with the unit as its history."""
    events.tell_unit(layers)
    for layer in layers:
        layer.check()
        layer.fused = True
    norms = [layer.activation.norm for layer in layers]
    projection = shortcut if _is_projection(shortcut, layers[0]) else None
    kind = ("identity", False, None) if projection is None else ("projection", True, projection.conv)
    unit = Unit(tuple(layer.layer for layer in layers), *kind)
    used = [None if projection is None else projection.used, *(layer.used for layer in layers)]
    # As they were read: the history of an inner result that somebody else takes is not the unit's business.
    inner = [layer.tensor.detach() for layer in layers[:-1]]
    done = UnitDone(y, used, torch.cat([norm.bn for norm in norms], 1), inner)
    group = next((norm.group for norm in norms if norm.layer.batch), None)
    chain = Chain((unit,), True, True, False, layers[0].dtype, group, norms[0].insisted, done)
    params = [t for norm, layer in zip(norms, layers, strict=True) for t in (norm.gamma, norm.beta, layer.weight)]
    weight = None if projection is None else projection.weight
    return PreActUnits.apply(chain, [], norms[0].input(), None, weight, *params)[0]
