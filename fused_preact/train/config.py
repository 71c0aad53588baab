"""What one training run is made of."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch

# What may change when a run goes on: it moves the work, not the result (beyond rounding).
OF_THE_MACHINE = frozenset({"out", "data_dir", "device", "threads", "workers", "checkpoint_every", "log_every"})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that decides a training run; the same config on the same machine, threads and processes gives the same weights.

    Attributes:
        out: the run's folder.
        model, memory: as `models.create_model` takes them.
        model_options: more of its options, by name, as JSON has them.
        data, data_dir: as `data.load` takes them.
        recipe: the name of the preset that the fields began as; they need not have kept its values.
        epochs, iterations: how long; one of them is None.
        batch_size: images a step, of all processes together.
        schedule: "one-cycle" (up to `lr` in the first fifth, and down to nothing), or "steps": a tenth of it from each milestone on.
        milestones: in epochs or iterations, as the length is.
        warmup_iterations: the first iterations, which take `warmup_lr` ("steps" only).
        decay: what `weight_decay` pulls at: "all" parameters, or the weights of convolutions ("conv").
        crop_size, scale, lighting: of images in folders; `data.folder` explains them.
        dtype: other than float32 means autocast with float32 master weights.
        sync_bn: the processes share the statistics of a batch.
        compile: units go through torch.compile.
        cuda_graph: the training step is captured; no effect on a CPU.
        threads: of the CPU; None leaves torch's choice.
        workers: processes that decode images in folders.
        checkpoint_every: iterations between checkpoints, besides those after every epoch; None: no more than these.
        log_every: iterations that a line of metrics.jsonl sums up.
    """

    out: Path
    model: str = "preact_resnet164"
    model_options: dict[str, Any] = field(default_factory=dict)
    memory: str = "layer"
    data: str = "digits"
    data_dir: Path | None = None
    recipe: str = "one-cycle"
    epochs: int | None = 5
    iterations: int | None = None
    batch_size: int = 32
    schedule: str = "one-cycle"
    lr: float = 0.1
    milestones: tuple[int, ...] = ()
    warmup_iterations: int = 0
    warmup_lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    decay: str = "all"
    crop_size: int = 224
    scale: str = "aspect"
    lighting: bool = False
    dtype: str = "float32"
    sync_bn: bool = False
    compile: bool = False
    cuda_graph: bool = False
    device: str = "cpu"
    threads: int | None = None
    workers: int = 4
    seed: int = 0
    checkpoint_every: int | None = None
    log_every: int = 20

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def device_type(self) -> str:
        return torch.device(self.device).type

    @property
    def captured(self) -> bool:
        """Whether the training step becomes a CUDA graph."""
        return self.cuda_graph and self.device_type == "cuda"

    def steps(self, per_epoch: int) -> int:
        """How many steps the run has."""
        return self.iterations if self.epochs is None else self.epochs * per_epoch

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """The config that `as_json` wrote; other keys are left out. Raises TypeError without `out`."""
        known = {field.name: stored[field.name] for field in fields(cls) if field.name in stored}
        for name in ("out", "data_dir"):
            if known.get(name) is not None:
                known[name] = Path(known[name])
        if "milestones" in known:
            known["milestones"] = tuple(known["milestones"])
        return cls(**known)


def differences(stored: TrainConfig, wanted: TrainConfig) -> list[str]:
    """What `wanted` would have a run do otherwise, as "lr 0.1 (now 0.05)"; fields of the machine alone do not count."""
    old, new = stored.as_json(), wanted.as_json()
    return [f"{name} {_said(old[name])} (now {_said(new[name])})" for name in old if name not in OF_THE_MACHINE and old[name] != new[name]]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _said(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{name}={_said(option)}" for name, option in sorted(value.items())]
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else "none" if value is None else str(value)
