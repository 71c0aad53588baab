"""What a checkpoint of a training run costs beside the steps of the epoch that it follows.

A checkpoint is everything that `fused-preact train` writes after an epoch: the metric files, of a run that is at its end, and
checkpoint.pt.

    python -m benchmarks.checkpoint [--model preact_resnet164] [--batch-size 128] [--rounds 10] [--out DIR] [--json FILE]
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from fused_preact._files import write_json
from fused_preact.bench.machine import machine, summary
from fused_preact.bench.timing import interleaved
from fused_preact.data.source import Batch
from fused_preact.models import create_model, list_models
from fused_preact.train import checkpoint
from fused_preact.train.checkpoint import State
from fused_preact.train.config import TrainConfig
from fused_preact.train.recipes import resolve
from fused_preact.train.record import EpochRecord, History, StepRecord
from fused_preact.train.trainer import Trainer
from fused_preact.train.writer import RunWriter

# Of CIFAR.
IMAGES, SIZE = 50_000, 32
# At most so much of an epoch's steps.
AIM = 0.01


def history(config: TrainConfig, per_epoch: int) -> History:
    """What a run reports from its beginning to its end."""
    total = config.steps(per_epoch)
    steps = [StepRecord(n, n // per_epoch, 0.1, 1 / n, 0.5, 100.0, 1e9 + n) for n in range(config.log_every, total + 1, config.log_every)]
    epochs = [EpochRecord(n, n * per_epoch, 0.1, 1 / n, 0.5, 1 / n, 0.5, 0.9, 1.0, 1.0, 1.0, 1e9) for n in range(1, total // per_epoch + 1)]
    return History(steps, epochs)


def measure(model: str, batch_size: int, rounds: int, out: Path) -> dict[str, Any]:
    """Medians and quartiles of a step and of a checkpoint in turns, and the share of the second in an epoch of the first."""
    config = TrainConfig(**resolve("paper-cifar", {"out": out, "model": model, "batch_size": batch_size}))
    trainer = Trainer(create_model(model).to(memory_format=torch.channels_last), config)
    images = torch.randn(batch_size, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    batch = Batch(images, torch.randint(10, (batch_size,)))
    per_epoch = IMAGES // batch_size
    state, writer = State(step=config.steps(per_epoch), history=history(config, per_epoch)), RunWriter(out)

    def save() -> None:
        packed = checkpoint.pack(config, state, trainer, per_epoch)
        assert checkpoint.finite(packed)
        writer.records(state.history)
        writer.checkpoint(packed)

    times = interleaved({"step": lambda: trainer.step(batch), "checkpoint": save}, rounds)
    return {
        "machine": machine(),
        "config": {"model": model, "batch_size": batch_size, "steps_per_epoch": per_epoch, "rounds": rounds},
        "records": [len(records) for records in state.history],
        "bytes": {path.name: path.stat().st_size for path in sorted(out.iterdir())},
        "step_ms": times["step"]._asdict(),
        "checkpoint_ms": times["checkpoint"]._asdict(),
        "share_of_epoch": times["checkpoint"].median / (per_epoch * times["step"].median),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list_models(), default="preact_resnet164")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="a folder on the disk to be measured (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        result = measure(args.model, args.batch_size, args.rounds, Path(folder))
    print(summary(result["machine"]))
    for name in ("step", "checkpoint"):
        time = result[f"{name}_ms"]
        print(f"{name:10} {time['median']:8.1f} ms  ({time['q1']:.1f} .. {time['q3']:.1f})")
    print(f"share of an epoch of {result['config']['steps_per_epoch']} steps: {result['share_of_epoch']:.3%}, aim {AIM:.0%}")
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
