"""The gate in front of every timing: variants must compute the same training step.

The truth is the reference network in float64. A variant may be `RATIO` times as far from it as eager PyTorch is in the variant's own
dtype, plus a floor. The ratio is what means something: an error grows with depth and with the dtype, but alike for every correct
implementation. 2.5 rather than 2, because the two draw different rounding errors and ReLU masks, and are compared only once.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_preact.bench.networks import plain
from fused_preact.bench.variants import Config, Variant, batch, build

RATIO = 2.5
# Some roundings of float32, for when eager PyTorch is exact by luck.
FLOOR = 1e-6
# A pre-activation within rounding of zero may pass ReLU in one variant and not in the other; a few such elements are seen in the
# gradients however small the rounding is.
MASK_FLIPS = 0.02


class Disagreement(Exception):
    """A variant does not compute what eager PyTorch computes; the message is the sentence that the user sees."""


class Errors(NamedTuple):
    """Relative root-mean-square distances to float64: of logits, of all gradients together, of all running statistics together."""

    logits: float
    gradients: float
    statistics: float


class _Step(NamedTuple):
    """What a step computed. parameters: the names of those with gradients."""

    logits: Tensor
    gradients: Tensor
    statistics: Tensor
    parameters: list[str]


def check(variants: Iterable[Variant], config: Config, weights: dict[str, Tensor]) -> dict[str, Errors]:
    """Run one training step of each variant on at most four images; raises Disagreement for the first that is wrong.

    Returns the error of each variant, and that of eager PyTorch in any case. Leaves all variants at `weights` without gradients.
    """
    images, labels = batch(config, min(config.batch_size, 4))
    truth = _truth(config, weights, images, labels)

    def distance(variant: Variant) -> Errors:
        with _same_dropout(config):
            return _distance(_step(variant, images, labels, truth.parameters), truth)

    eager = distance(build("eager", config, weights))
    errors = {"eager": eager}
    for variant in variants:
        errors[variant.name] = distance(variant)
        variant.model.load_state_dict(weights)
        for name, error, limit in zip(Errors._fields, errors[variant.name], limits(eager), strict=True):
            # Not `error > limit`: NaN must not pass.
            if not error <= limit:
                raise Disagreement(
                    f"{variant.name} does not agree with eager PyTorch: the relative error of its {name} is {error:.2g} and may be at "
                    f"most {limit:.2g}; nothing was timed"
                )
    return errors


def limits(eager: Errors) -> Errors:
    """What the errors of a variant may be at most, given those of eager PyTorch in the same dtype."""
    logits, gradients, statistics = (RATIO * error + FLOOR for error in eager)
    return Errors(logits, gradients + MASK_FLIPS, statistics)


def _truth(config: Config, weights: dict[str, Tensor], images: Tensor, labels: Tensor) -> _Step:
    model = plain(config.model).to(config.device, torch.float64)
    model.load_state_dict(weights)
    with _same_dropout(config):
        logits = model.train()(images.double())
    F.cross_entropy(logits, labels).backward()
    return _collect(model, logits, [name for name, parameter in model.named_parameters() if parameter.grad is not None])


def _step(variant: Variant, images: Tensor, labels: Tensor, parameters: list[str]) -> _Step:
    logits = variant.logits(images)
    variant.loss(logits, labels).backward()
    step = _collect(variant.model, logits, parameters, variant.loss_scale)
    variant.optimizer.zero_grad(set_to_none=True)
    return step


@contextlib.contextmanager
def _same_dropout(config: Config) -> Iterator[None]:
    """Networks draw the same inside, whichever variant they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        yield


def _collect(model: torch.nn.Module, logits: Tensor, names: list[str], scale: float = 1.0) -> _Step:
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    missing = [name for name in names if parameters[name].grad is None]
    if missing:
        raise Disagreement(f"{missing[0]} and {len(missing) - 1} other parameters got no gradient; nothing was timed")
    gradients = _joined([parameters[name].grad / scale for name in names])
    statistics = _joined([buffers[name] for name in sorted(buffers) if "running" in name])
    return _Step(logits.detach().double(), gradients, statistics, names)


def _joined(tensors: list[Tensor]) -> Tensor:
    # Norms may have no running statistics.
    return torch.cat([t.double().flatten() for t in tensors]) if tensors else torch.zeros(0)


def _distance(step: _Step, truth: _Step) -> Errors:
    return Errors(*(((a - b).norm() / b.norm()).item() if b.numel() else 0.0 for a, b in zip(step[:3], truth[:3], strict=True)))
