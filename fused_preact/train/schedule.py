"""Learning rates as functions of the step, so that a run that goes on has nothing to restore."""

import math
from bisect import bisect_right

from fused_preact.train.config import TrainConfig

# As torch.optim.lr_scheduler.OneCycleLR has them, but for a rise of a fifth.
_RISE, _FIRST, _LAST = 0.2, 1 / 25, 1 / 25e4


def learning_rate(config: TrainConfig, step: int, per_epoch: int) -> float:
    """The learning rate of step number `step`, from 0."""
    if config.schedule == "one-cycle":
        return config.lr * _one_cycle(step, config.steps(per_epoch))
    if step < config.warmup_iterations:
        return config.warmup_lr
    position = step if config.epochs is None else step // per_epoch
    return config.lr * 0.1 ** bisect_right(sorted(config.milestones), position)


def _one_cycle(step: int, total: int) -> float:
    peak = max(_RISE * total - 1, 0.0)
    if step < peak:
        return _cosine(_FIRST, 1.0, step / peak)
    return _cosine(1.0, _LAST, (step - peak) / max(total - 1 - peak, 1.0))


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(part, 1.0))) / 2
