"""What one training run is made of."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that decides a training run; the same config on the same machine and threads gives the same weights.

    `dtype` other than float32 means autocast with float32 master weights. `threads` of None leaves torch's choice. `cuda_graph` captures
    the training step, and has no effect on a CPU.
    """

    out: Path
    model: str = "preact_resnet164"
    data: str = "digits"
    epochs: int = 5
    batch_size: int = 32
    lr: float = 0.1
    weight_decay: float = 1e-4
    dtype: str = "float32"
    device: str = "cpu"
    memory: str = "layer"
    seed: int = 0
    threads: int | None = None
    cuda_graph: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def captured(self) -> bool:
        """Whether the training step becomes a CUDA graph."""
        return self.cuda_graph and torch.device(self.device).type == "cuda"

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return asdict(self) | {"out": str(self.out)}
