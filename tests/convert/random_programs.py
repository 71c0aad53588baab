"""Programs drawn at random from what code does with the results of norms and convolutions."""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.convert.parts import Double, Parts


def without_gradients(run: Callable[..., Tensor], *args: Tensor) -> Tensor:
    with torch.no_grad():
        return run(*args)


def packed(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: t):
        return run(x)


def sliced(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 2] = 0.3
    return x


def looked_at(x: Tensor) -> Tensor:
    without_gradients(x.mean).item()
    return x


# Of the parts, the number of a layer, a result and another result. In place only what both sides refuse or both allow.
STEPS: dict[str, Callable[[Parts, int, Tensor, Tensor], Tensor]] = {
    "norm": lambda m, k, a, b: m._modules[f"bn{k}"](a),
    "relu": lambda m, k, a, b: F.relu(a),
    "conv": lambda m, k, a, b: m._modules[f"conv{k}"](a),
    "proj": lambda m, k, a, b: m.proj(a),
    "add": lambda m, k, a, b: a + b,
    "iadd": lambda m, k, a, b: a.add_(b),
    "scale": lambda m, k, a, b: a * 0.5 + 0.1,
    "negate": lambda m, k, a, b: -a,
    "detach": lambda m, k, a, b: a.detach(),
    "leaf": lambda m, k, a, b: a.detach().requires_grad_() * 1,
    "view": lambda m, k, a, b: a.view(a.shape),
    "clone": lambda m, k, a, b: a.clone(),
    "cat": lambda m, k, a, b: torch.cat([a[:, :4], b[:, 4:]], 1),
    "slice": lambda m, k, a, b: sliced(a),
    "look": lambda m, k, a, b: looked_at(a),
    "function": lambda m, k, a, b: Double.apply(a),
    "no dropout": lambda m, k, a, b: F.dropout(a, 0.0),
    "no_grad layer": lambda m, k, a, b: without_gradients(m.layer, k, a),
    "no_grad add": lambda m, k, a, b: without_gradients(torch.add, a, b),
    "checkpoint": lambda m, k, a, b: checkpoint(m.layer, k, a, use_reentrant=False),
    "checkpointed sum": lambda m, k, a, b: checkpoint(lambda a, b: F.relu(a + b), a, b, use_reentrant=False),
    "packed": lambda m, k, a, b: packed(lambda a: m.layer(k, a), a),
}
# What makes units, more often than chance would.
OFTEN = ["norm", "norm", "relu", "conv", "conv", "add"]


def program(seed: int, m: Parts, x: Tensor) -> list[Tensor]:
    """Some steps, each on a recent result, and backward of some of the results. Returns all results and the loss."""
    draw, results = random.Random(seed), [m.stem(x)]
    for _ in range(draw.randint(4, 14)):
        step = STEPS[draw.choice([*STEPS, *OFTEN * 2])]
        recent = len(results) - 1 if draw.random() < 0.7 else draw.randrange(max(0, len(results) - 3), len(results))
        results.append(step(m, draw.randint(1, 3), results[recent], results[draw.randrange(len(results))]))
    used = [results[-1], *draw.sample(results, draw.randint(1, len(results)))]
    loss = sum(t.square().mean() * (1 + 0.1 * i) for i, t in enumerate(used))
    if loss.requires_grad:
        loss.backward(retain_graph=draw.random() < 0.2)
    return [*(t.detach() for t in results), loss]
