"""What a batch of training data costs beside the training step that it is for."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fused_preact.bench.compare import tuned
from fused_preact.bench.machine import machine, summary
from fused_preact.bench.timing import interleaved
from fused_preact.bench.variants import Config, batch, build, common_weights
from fused_preact.data.memory import Augment, Memory, Split
from fused_preact.data.source import Batch

IMAGES, SIZE = 50_000, 32
# As CIFAR is augmented.
AUGMENT = Augment(shift=4, flip=True, edge="zero")


def measure(config: Config, rounds: int, tell: Callable[[str], object] = lambda message: None) -> dict[str, Any]:
    """Time an augmented batch out of memory, and eager PyTorch's training step of as many images, in turns; the report as JSON has it.

    Args:
        config: the step; its network is for images of 32x32.
        rounds: timed samples of each.
        tell: gets a few words on what is being done, for a user who waits.
    """
    with tuned(torch.device(config.device)):
        tell(f"making {IMAGES} random images")
        batches = _endless(_random(config.seed).to(config.device), config)
        eager = build("eager", config, common_weights(config))
        images, labels = batch(config)
        tell(f"timing {rounds} rounds")
        functions = {"step": lambda: eager.step(images, labels), "batch": lambda: next(batches)}
        times = interleaved(functions, rounds, device=config.device)
    fields = ("model", "batch_size", "device", "dtype", "seed")
    return {
        "machine": machine(config.device),
        "config": {field: getattr(config, field) for field in fields} | {"images": IMAGES, "image_size": SIZE, "rounds": rounds},
        "augment": AUGMENT._asdict(),
        "step_ms": times["step"]._asdict(),
        "batch_ms": times["batch"]._asdict(),
        "share": times["batch"].median / times["step"].median,
    }


def table(report: dict[str, Any]) -> str:
    """The report for people: what was measured, on what, and a row for the step and for the batch."""
    config, augment = report["config"], report["augment"]
    rows = [("", "ms", "q1 .. q3", "share of the step")]
    for name, share in (("step", ""), ("batch", f"{report['share']:.2%}")):
        times = report[f"{name}_ms"]
        rows.append((name, f"{times['median']:.3f}", f"{times['q1']:.3f} .. {times['q3']:.3f}", share))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows)
    size = f"{config['batch_size']} images of {SIZE}x{SIZE}, {config['dtype']}, {config['device']}"
    step = f"{config['model']}: eager training step of {size}; median of {config['rounds']} interleaved rounds"
    moved = f"moved by up to {augment['shift']} pixels and mirrored at random"
    batch = f"batch: as many images of {config['images']} held on the device, {moved}"
    return "\n".join([step, batch, summary(report["machine"]), "", *lines])


def _random(seed: int) -> Memory:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (IMAGES, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    train = Split(images, torch.randint(10, (IMAGES,), generator=generator))
    return Memory(train, Split(*(t[:1] for t in train)), num_classes=10, mean=[127.5] * 3, std=[73.9] * 3, augment=AUGMENT)


def _endless(source: Memory, config: Config) -> Iterator[Batch]:
    epochs = (source.train_batches(config.batch_size, seed=config.seed, epoch=epoch) for epoch in itertools.count())
    return itertools.chain.from_iterable(epochs)
