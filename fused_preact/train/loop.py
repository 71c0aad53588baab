"""A training run from beginning to end, or from a checkpoint on."""

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from typing import Any

import torch

from fused_preact import data
from fused_preact._extras import require
from fused_preact.bench.variants import compiling
from fused_preact.convert import fuse, is_fused
from fused_preact.data.source import Source, generator
from fused_preact.models import create_model
from fused_preact.train import checkpoint
from fused_preact.train.checkpoint import State
from fused_preact.train.config import TrainConfig
from fused_preact.train.evaluate import evaluate
from fused_preact.train.interrupt import Interrupts
from fused_preact.train.lock import locked
from fused_preact.train.meter import DivergedError, Meter, Sums
from fused_preact.train.progress import Progress
from fused_preact.train.recipes import describe
from fused_preact.train.record import EpochRecord, FitResult, StepRecord
from fused_preact.train.schedule import learning_rate
from fused_preact.train.summary import TOP5_CLASSES
from fused_preact.train.trainer import Trainer
from fused_preact.train.usage import peak_mb
from fused_preact.train.world import World
from fused_preact.train.writer import CHECKPOINT, RunWriter
from fused_preact.train.writer import NEEDED as OF_WRITER

# Reading a loss waits for the device, so it happens a few times a second and not every step.
_READ_SECONDS = 0.25
NEEDED = ("tqdm", *OF_WRITER)
# Apart from what the data draw.
_OF_THE_MODEL = 2
# Agreeing on a signal waits for the device too.
_AGREE_STEPS = {"cpu": 1, "cuda": 16}


def fit(
    config: TrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    world: World | None = None,
    interrupts: Interrupts | None = None,
) -> FitResult:
    """Train as `config` says, and leave the files of `RunWriter` in its folder: a checkpoint after every epoch, the weights at the end.

    SIGINT and SIGTERM end the run after the step at hand, with a checkpoint (`FitResult.interrupted`).

    Args:
        config: the run.
        resume: go on from the folder's checkpoint, if it has one.
        overwrite: let this run take the place of one in the folder.
        world: this process among those of the run; None: it is alone.
        interrupts: entered by a caller who has more to do, and is told here of a signal that came too late to end the run.

    Raises FileExistsError for a folder with a run in it, DivergedError when the loss stops being finite, FolderInUse when another run
    writes to the folder, DataError and CheckpointError for files that are not what they should be, MissingExtraError before anything is
    written when a package is missing.
    """
    world = world or World(device=config.device)
    for name in NEEDED:
        require(name)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    source = load_data(config)
    run = Run(config, world, source)
    with contextlib.ExitStack() as stack:
        interrupts = interrupts or stack.enter_context(Interrupts())
        stack.enter_context(_repeatable())
        if config.compile:
            stack.enter_context(compiling())
        if world.first:
            config.out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(config.out))
            run.writer = RunWriter(config.out)
            if not resume:
                run.writer.clear(overwrite)
        return run.run(interrupts, resume)


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    """cuDNN takes the same algorithms in every run, and none that adds in a random order: a run that goes on must end as it would have."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def load_data(config: TrainConfig) -> Source:
    """The data set of a config, on its device."""
    options: dict[str, Any] = {}
    if config.data == "folder":
        options = {"crop_size": config.crop_size, "scale": config.scale, "lighting": config.lighting, "workers": config.workers}
    return data.load(config.data, config.data_dir, device=config.device, **options)


class Run:
    """One run: where it is, what it learns with, and where it writes."""

    def __init__(self, config: TrainConfig, world: World, source: Source) -> None:
        self.config, self.world, self.source = config, world, source
        model = create_model(config.model, num_classes=source.num_classes, memory=config.memory, **config.model_options)
        if config.sync_bn:
            fused = is_fused(model)
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
            if fused:
                # Converted norms are new ones.
                fuse(model, inplace=True)
        self.model = model.to(device=config.device, memory_format=torch.channels_last)
        if config.compile:
            for unit in model.units():
                unit.compile(dynamic=False)
        self.trainer = Trainer(self.model, config, world)
        self.per_epoch = source.steps_per_epoch(config.batch_size)
        self.images = min(config.batch_size, source.train_images)
        self.total = config.steps(self.per_epoch)
        self.state, self.meter = State(), Meter(world)
        self._saved: int | None = None

    def run(self, interrupts: Interrupts, resume: bool) -> FitResult:
        """To the end, or to a signal."""
        path = self.config.out / CHECKPOINT
        if resume and self.world.told(path.exists()):
            self.state = checkpoint.unpack(checkpoint.read(path), self.trainer, self.per_epoch)
            self._saved = self.state.step
            self._reopen_epoch()
        if self.world.first:
            self.writer.config(self.fields())
            self.writer.records(self.state.history)
            if self.state.step < self.total:
                self.writer.remove_model()
        progress = Progress(
            epochs=-(-self.total // self.per_epoch),
            total_images=self.total * self.images,
            done_images=self.state.step * self.images,
            quiet=not self.world.first,
            device=self.config.device,
            top5=self.source.num_classes > TOP5_CLASSES,
        )
        with progress:
            progress.note(describe(self.config))
            while self.state.step < self.total and not self._signal(interrupts):
                self._epoch(progress, interrupts)
        stopped = self._signal(interrupts) if self.state.step < self.total else 0
        if self.world.first:
            if not stopped:
                self.writer.model(self.model)
            self.writer.curves(self.state.history, f"{self.config.model} on {self.config.data}")
        return FitResult(self.state.history, self.config.out, signal.Signals(stopped).name if stopped else None)

    def _reopen_epoch(self) -> None:
        """Take back the record of an epoch that the end of the run cut short, if the run is longer now."""
        state = self.state
        done = state.step % self.per_epoch
        if done and state.step < self.total and state.history.epochs and state.history.epochs[-1].step == state.step:
            record, images = state.history.epochs.pop(), done * self.images
            state.epoch = Sums(images, record.train_loss * images, round(record.train_accuracy * images), record.seconds)

    def fields(self) -> dict[str, Any]:
        """What config.json holds: the config, and what follows from it and from the machine."""
        return self.config.as_json() | {
            "num_classes": self.source.num_classes,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "steps": self.total,
            "steps_per_epoch": self.per_epoch,
            "processes": self.world.shard.world,
            "torch": torch.__version__,
        }

    def _signal(self, interrupts: Interrupts) -> int:
        return self.world.any(int(interrupts.signal))

    def _epoch(self, progress: Progress, interrupts: Interrupts) -> None:
        """What is left of an epoch, and its evaluation; or less, with a checkpoint, if a signal comes."""
        state, config = self.state, self.config
        epoch = state.step // self.per_epoch
        end = min((epoch + 1) * self.per_epoch, self.total)
        progress.epoch(epoch + 1)
        self.model.train()
        batches = self.source.train_batches(
            config.batch_size, seed=config.seed, epoch=epoch, first=state.step - epoch * self.per_epoch, shard=self.world.shard
        )
        self._clock = self._read_at = time.perf_counter()
        for batch in batches:
            self.trainer.lr = learning_rate(config, state.step, self.per_epoch)
            # What a step draws (dropout) is a function of the seed, the step and the process: no generator's state outlives a step.
            torch.manual_seed(generator(config.seed, state.step, self.world.shard.rank, _OF_THE_MODEL).initial_seed())
            self.meter.add(*self.trainer.step(batch), self.images)
            state.step += 1
            progress.advance(self.images)
            self._watch(progress)
            if state.step == end:
                break
            asked = self.world.alone or state.step % _AGREE_STEPS[config.device_type] == 0
            stop = asked and self._signal(interrupts)
            if stop or (config.checkpoint_every and state.step % config.checkpoint_every == 0):
                self._read()
                self._save()
            if stop:
                return
        self._read()
        self._evaluate(epoch)
        self._save()
        progress.record(state.history.epochs[-1])

    def _watch(self, progress: Progress) -> None:
        """Read the losses where a record is due, and, alone, whenever a person would like to see them."""
        state = self.state
        if state.step % self.config.log_every == 0 or state.step == self.total:
            self._read()
            sums, epoch = state.record.clear(), (state.step - 1) // self.per_epoch
            lr = learning_rate(self.config, state.step - 1, self.per_epoch)
            speed = sums.images / sums.seconds
            state.history.steps.append(StepRecord(state.step, epoch + 1, lr, sums.mean_loss, sums.accuracy, speed, time.time()))
        elif self.world.alone and time.perf_counter() - self._read_at > _READ_SECONDS:
            self._read()
        else:
            return
        progress.show(state.epoch.mean_loss, state.epoch.accuracy)
        self._read_at = time.perf_counter()

    def _read(self) -> None:
        """Bring the sums up to the step, and their seconds to this moment; raises DivergedError at the first loss that is not finite."""
        state, steps = self.state, self.meter.read()
        for number, step in enumerate(steps, state.step - len(steps)):
            if not math.isfinite(step[1]):
                raise self._diverged(f"the loss of step {number + 1} became {step[1] / step[0]}", number)
            state.epoch.add(*step)
            state.record.add(*step)
        now = time.perf_counter()
        state.epoch.seconds += now - self._clock
        state.record.seconds += now - self._clock
        self._clock = now

    def _evaluate(self, epoch: int) -> None:
        self.trainer.share_buffers()
        batches = self.source.test_batches(self.images, shard=self.world.shard)
        scores = evaluate(self.model, batches, self.config, self.world)
        state = self.state
        if not math.isfinite(scores.loss):
            raise self._diverged(f"the test loss after step {state.step} became {scores.loss}", state.step - 1)
        sums = state.epoch.clear()
        first = learning_rate(self.config, epoch * self.per_epoch, self.per_epoch)
        learnt = (sums.mean_loss, sums.accuracy)
        spent = (sums.seconds, sums.images / sums.seconds, peak_mb(self.config.device))
        record = EpochRecord(epoch + 1, state.step, first, *learnt, scores.loss, scores.accuracy, scores.top5, *spent, time.time())
        state.history.epochs.append(record)

    def _save(self) -> None:
        """Write everything reported so far and then the checkpoint, unless the weights are no numbers any more."""
        packed = checkpoint.pack(self.config, self.state, self.trainer, self.per_epoch)
        if not checkpoint.finite(packed):
            raise self._diverged(f"a weight is not a finite number after step {self.state.step}", self.state.step - 1)
        if self.world.first:
            self.writer.records(self.state.history)
            self.writer.checkpoint(packed)
        self._saved = self.state.step
        self._clock = time.perf_counter()

    def _diverged(self, what: str, step: int) -> DivergedError:
        """`what`, with the learning rate of step number `step` (from 0)."""
        lr = learning_rate(self.config, step, self.per_epoch)
        kept = (
            "there is no checkpoint yet"
            if self._saved is None
            else f"the last good checkpoint, of step {self._saved}, is {self.config.out / CHECKPOINT}"
        )
        return DivergedError(f"training diverged: {what} at a learning rate of {lr:g}; {kept}; a lower --lr may help")
