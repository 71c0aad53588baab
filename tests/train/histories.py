"""Runs that nobody trained."""

import math

from fused_preact.train.record import EpochRecord, History, StepRecord

STEPS_PER_EPOCH, EVERY, START = 20, 5, 1.7e9


def history(epochs: int, *, seed: int = 0, lost_after: float = math.inf) -> History:
    """`epochs` epochs of 20 steps, recorded every 5; error and loss fall, best in the last but one epoch; the loss is NaN after a step.

    `seed` shifts the times, as they differ when the same steps are run again.
    """
    steps, ended = [], []
    for step in range(EVERY, epochs * STEPS_PER_EPOCH + 1, EVERY):
        epoch = (step - 1) // STEPS_PER_EPOCH + 1
        loss = math.nan if step > lost_after else 2.5 / (1 + step / 10)
        steps.append(StepRecord(step, epoch, rate(step), loss, 1 - 0.9 / (1 + step / 20), 1234.5678901, START + seed + step / 7))
    for epoch in range(1, epochs + 1):
        step = epoch * STEPS_PER_EPOCH
        loss = math.nan if step > lost_after else 2 / epoch
        accuracy = 1 - 0.8 / (epoch if epoch < epochs or epochs < 2 else epoch - 1.5)
        ended.append(
            EpochRecord(
                epoch,
                step,
                rate(step),
                loss,
                1 - 0.7 / epoch,
                loss,
                accuracy,
                0.99,
                3.0,
                1000.0 + epoch,
                2345.678,
                START + seed + step / 7 + 1,
            )
        )
    return History(steps, ended)


def rate(step: int) -> float:
    """A learning rate in steps: a tenth after every 40."""
    return 0.1 * 0.1 ** ((step - 1) // 40)


def cut(whole: History, step: int) -> History:
    """What was recorded up to `step`."""
    return History([r for r in whole.steps if r.step <= step], [r for r in whole.epochs if r.step <= step])
