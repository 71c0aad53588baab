"""Evaluation with running statistics."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from fused_preact.data.source import Batch
from fused_preact.train.config import TrainConfig
from fused_preact.train.trainer import autocast
from fused_preact.train.world import World


class Scores(NamedTuple):
    """Mean cross entropy over all images, the fraction whose first guess is right, and that with the label among the first five."""

    loss: float
    accuracy: float
    top5: float


def evaluate(model: nn.Module, batches: Iterable[Batch], config: TrainConfig, world: World | None = None) -> Scores:
    """Scores over the batches of all processes; several views of an image average their probabilities. Leaves the model in eval mode."""
    model.eval()
    sums, images = torch.zeros(3, dtype=torch.float64, device=config.device), 0
    with torch.no_grad():
        for pixels, labels in batches:
            with autocast(config):
                logits = model(pixels)
            views = logits.float().view(len(labels), -1, logits.shape[1])
            log_probabilities = torch.logsumexp(views.log_softmax(2), 1) - math.log(views.shape[1])
            best = log_probabilities.topk(min(5, logits.shape[1]), 1).indices == labels[:, None]
            loss = -log_probabilities.gather(1, labels[:, None]).sum(dtype=torch.float64)
            sums += torch.stack([loss, best[:, 0].sum(), best.sum()])
            images += len(labels)
    loss, first, five, images = (world or World()).total(torch.cat([sums, sums.new_tensor([images])])).tolist()
    return Scores(loss / images, first / images, five / images)
