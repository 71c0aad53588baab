"""Training and evaluation: SGD with Nesterov momentum under a one-cycle learning rate."""

import math
import time
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_preact.models import create_model
from fused_preact.train.config import TrainConfig
from fused_preact.train.data import Split, batches_per_epoch, in_order, load, shuffled
from fused_preact.train.graph import CapturedStep
from fused_preact.train.progress import Progress
from fused_preact.train.record import EpochRecord, FitResult
from fused_preact.train.writer import RunWriter

# Reading a loss waits for the device, so it happens a few times a second and not every step.
_READ_SECONDS = 0.25


class DivergedError(ArithmeticError):
    """The loss is no longer a finite number; the message is one sentence."""


class Meter:
    """Mean loss and accuracy, summed on the device."""

    def __init__(self, device: torch.device | str) -> None:
        self._loss = torch.zeros((), device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._images = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """`loss` is the mean over a batch."""
        self._loss += loss.detach() * len(labels)
        self._correct += (logits.detach().argmax(1) == labels).sum()
        self._images += len(labels)

    def read(self) -> tuple[float, float]:
        """(mean loss, fraction correct); waits for the device."""
        return self._loss.item() / self._images, self._correct.item() / self._images


def evaluate(model: nn.Module, batches: Iterable[Split], config: TrainConfig) -> tuple[float, float]:
    """(mean loss, fraction correct) with running statistics; leaves the model in eval mode."""
    model.eval()
    meter = Meter(config.device)
    with torch.no_grad(), _autocast(config):
        for images, labels in batches:
            logits = model(images)
            meter.add(F.cross_entropy(logits, labels), logits, labels)
    return meter.read()


def fit(config: TrainConfig) -> FitResult:
    """Train as `config` says and write config.json, metrics.csv (after every epoch) and model.safetensors (at the end).

    Raises DivergedError when the loss stops being finite, MissingExtraError before anything is written when a package is missing.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    data = load(config.data)
    train, test = data.train.to(config.device), data.test.to(config.device)
    model = create_model(config.model, num_classes=data.num_classes, memory=config.memory)
    model = model.to(device=config.device, memory_format=torch.channels_last)
    batch_size = min(config.batch_size, len(train.labels))
    steps = batches_per_epoch(len(train.labels), batch_size)
    trainer = Trainer(model, config, steps)
    order = torch.Generator().manual_seed(config.seed)
    epochs: list[EpochRecord] = []
    with Progress(config.epochs, steps * batch_size) as progress:
        writer = RunWriter(config.out)
        writer.config(config.as_json() | {"num_classes": data.num_classes, "torch": torch.__version__})
        for epoch in range(1, config.epochs + 1):
            progress.epoch(epoch)
            lr, start = trainer.lr, time.perf_counter()
            train_loss, train_accuracy = trainer.epoch(shuffled(train, batch_size, order, data.shift), progress)
            seconds = time.perf_counter() - start
            test_loss, test_accuracy = evaluate(model, in_order(test, batch_size), config)
            images_per_s = steps * batch_size / seconds
            epochs.append(EpochRecord(epoch, lr, train_loss, train_accuracy, test_loss, test_accuracy, seconds, images_per_s))
            writer.metrics(epochs)
            progress.record(epochs[-1])
        writer.model(model)
    return FitResult(epochs, config.out)


class Trainer:
    """A model with its optimizer, learning-rate schedule and loss scaler."""

    def __init__(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        self.model, self.config = model, config
        self.optimizer = _sgd(model, config)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=config.lr, total_steps=config.epochs * steps_per_epoch, pct_start=0.2, cycle_momentum=False
        )
        self.scaler = torch.amp.GradScaler(torch.device(config.device).type, enabled=config.dtype == "float16")
        self._step = CapturedStep(self._update, config.device) if config.captured else self._update

    @property
    def lr(self) -> float:
        """The learning rate that the next step takes; waits for the device if the step is captured."""
        return float(self.optimizer.param_groups[0]["lr"])

    def epoch(self, batches: Iterable[Split], progress: Progress) -> tuple[float, float]:
        """Learn from every batch once; (mean loss, fraction correct) as the batches went by."""
        self.model.train()
        meter = Meter(self.config.device)
        read_at = time.perf_counter()
        for batch in batches:
            meter.add(*self.step(batch), batch.labels)
            if time.perf_counter() - read_at > _READ_SECONDS:
                progress.show(*_finite(meter))
                read_at = time.perf_counter()
            progress.advance(len(batch.labels))
        return _finite(meter)

    def step(self, batch: Split) -> tuple[Tensor, Tensor]:
        """One step of the optimizer and of the schedule; (mean loss, logits)."""
        loss, logits = self._step(*batch)
        self.schedule.step()
        return loss, logits

    def _update(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What a CUDA graph holds: forward, loss, backward, optimizer step."""
        with _autocast(self.config):
            logits = self.model(images)
            loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss, logits


def _sgd(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": config.weight_decay}
    if not config.captured:
        return torch.optim.SGD(model.parameters(), lr=config.lr, **options)
    # Of torch's implementations only the fused one reads the learning rate and GradScaler's verdict on the device.
    lr = torch.tensor(config.lr, dtype=torch.float32, device=config.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, fused=True, **options)
    # Its first step would leave the buffers uninitialised if GradScaler skipped it; from zeros it gives the same.
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _autocast(config: TrainConfig) -> torch.autocast:
    return torch.autocast(torch.device(config.device).type, dtype=config.torch_dtype, enabled=config.dtype != "float32")


def _finite(meter: Meter) -> tuple[float, float]:
    loss, accuracy = meter.read()
    if not math.isfinite(loss):
        raise DivergedError(f"training diverged: the loss became {loss}; expected a finite number, a lower lr may help")
    return loss, accuracy
