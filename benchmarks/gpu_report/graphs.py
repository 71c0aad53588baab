"""CUDA graphs: the one place that captures."""

from collections.abc import Callable

import torch

from fused_preact.train.graph import CapturedStep


def capture(step: Callable[[], object], device: torch.device | str, warmup: int = 1) -> Callable[[], object]:
    """A function that replays the kernels of `step`, after `warmup` calls of it; on a CPU (a dry run) `step` itself.

    What `step` returns is dropped: kept, it would be copied in every replay.
    """
    if torch.device(device).type != "cuda":
        return step

    def silent() -> None:
        step()

    captured = CapturedStep(silent, device, warmup)
    for _ in range(warmup + 1):
        captured()
    return captured
