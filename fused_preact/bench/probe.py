"""What a step computes, and what the machine can compute in the same minute: absolute rates on a shared machine mean nothing alone."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fused_preact.backends import backend
from fused_preact.bench.networks import plain
from fused_preact.bench.variants import Config

SECONDS = 0.01


def step_flops(config: Config) -> int:
    """FLOPs of a training step's convolutions and classifier, 2 a multiply-add: forward, dgrad (the stem has none) and wgrad."""
    counted: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        counted.append(2 * y.numel() * module.weight[0].numel())

    # One image, and not on the meta device: somebody's network may look at values while it is made.
    model = plain(config.model).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(count)
        model(torch.zeros(1, 3, config.pixels, config.pixels))
    return config.batch_size * (3 * sum(counted) - counted[0])


def fma_probe(device: torch.device | str, dtype: torch.dtype) -> Callable[[], float] | None:
    """Measures in 10 ms how many GFLOP/s all threads together reach in registers and L1.

    None where nobody can tell: on a GPU, without the native library, in a dtype that it does not know.
    """
    if torch.device(device).type != "cpu" or isinstance(backend("cpu"), str):
        return None
    from fused_preact import _cpu

    known = getattr(_cpu.Dtype, str(dtype).removeprefix("torch."), None)
    return None if known is None else lambda: 2e-9 * _cpu.probe(known, torch.get_num_threads(), SECONDS)
