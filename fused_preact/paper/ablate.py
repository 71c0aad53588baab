"""Rows of the paper's Tables 1 to 3, each over several seeds: which runs that is, and running them so that nothing is done twice."""

import json
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from fused_preact import data
from fused_preact._extras import require
from fused_preact._files import write_json
from fused_preact.models import architecture
from fused_preact.models.architectures import paper_depths
from fused_preact.models.paper_rows import Row
from fused_preact.train.config import TrainConfig, differences
from fused_preact.train.interrupt import Interrupts
from fused_preact.train.loop import NEEDED, fit, load_data
from fused_preact.train.meter import DivergedError
from fused_preact.train.recipes import RECIPES, resolve
from fused_preact.train.writer import CONFIG

ASKED, OUTCOME = "ablation.json", "outcome.json"
# ImageNet's images have no place in networks for 32x32.
DATASETS = tuple(name for name in data.DATASETS if name != "folder")
PAPER_SEEDS = (0, 1, 2, 3, 4)
# Of the version for two CPU cores; any of it can be given otherwise.
SMALL_ROWS = ("1-original", "1-scale-shortcut", "1-exclusive-6", "1-dropout", "2-full-preact-110")
SMALL_DEPTHS = (20, 29)
SMALL: dict[str, Any] = {"data": "digits", "iterations": 220, "batch_size": 32, "log_every": 44}
_WAIT_SECONDS = 0.5


class AblationError(ValueError):
    """What was asked for does not fit the rows or the folder; the message is one sentence that begins with the argument's name."""


class Run(NamedTuple):
    """One row with one seed; `config.out` is its folder, which rows of the same network share."""

    row: Row
    seed: int
    config: TrainConfig

    @property
    def done(self) -> bool:
        """Whether it is at its end, which a loss that diverged is too."""
        return (self.config.out / OUTCOME).exists()


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What is asked for.

    Attributes:
        rows: of the tables.
        seeds: each row is trained with every one.
        settings: of every run; its folder holds those of the runs. A row decides model and model_options, and `seeds` the seed.
        data_of_row: the row decides the data set too.
        scaled_warmup: the warm-up is that of 64k iterations, and keeps its share of a run's length.
        depths: in place of the rows' own, for each row the one that fits it; empty: the rows' own.
        small: the version for two CPU cores, which every report says.
    """

    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    settings: TrainConfig
    data_of_row: bool = True
    scaled_warmup: bool = True
    depths: tuple[int, ...] = ()
    small: bool = False

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        seeds: Sequence[int],
        *,
        out: Path,
        recipe: str = "paper-cifar",
        depths: Sequence[int] = (),
        small: bool = False,
        **given: Any,
    ) -> Self:
        """An ablation with `recipe`, and fields of `TrainConfig` in `given` in place of the recipe's; without `data` each row has its own.

        Milestones and warm-up keep their place in the length. Raises ValueError for an unknown recipe.
        """
        settings = TrainConfig(**resolve(recipe, given) | {"out": out})
        lengths = {"epochs", "iterations"} & given.keys()
        return cls(
            rows=tuple(rows),
            seeds=tuple(seeds),
            settings=settings,
            data_of_row="data" not in given,
            scaled_warmup=bool(lengths) and "warmup_iterations" not in given,
            depths=tuple(depths),
            small=small,
        )

    @property
    def out(self) -> Path:
        return self.settings.out

    @property
    def paper_setting(self) -> bool:
        """Whether data, depths, hyperparameters and the number of seeds are the paper's, whatever the rows."""
        same = not differences(Ablation.of((), (), out=self.out).settings, replace(self.settings, cuda_graph=False))
        return same and self.data_of_row and not self.depths and len(self.seeds) == len(PAPER_SEEDS)

    def runs(self) -> list[Run]:
        """All of them, every row before the next seed: what is there of an ablation that is cut short, is of every row.

        Raises AblationError for a depth that fits none of a row's kind, DataError and MissingExtraError for data that can't be read.
        """
        models = [network(row, self.depths) for row in self.rows]
        configs = [
            replace(
                self.settings,
                model=model,
                model_options=dict(row.options),
                data=row.data if self.data_of_row else self.settings.data,
            )
            for row, model in zip(self.rows, models, strict=True)
        ]
        warmups = {name: self._warmup(config) for name, config in {config.data: config for config in configs}.items()}
        own = [
            [
                replace(config, seed=seed, out=self.out / row.id / f"seed{seed}", warmup_iterations=warmups[config.data])
                for row, config in zip(self.rows, configs, strict=True)
            ]
            for seed in self.seeds
        ]
        return [
            Run(row, seed, _shared(config, of_seed))
            for seed, of_seed in zip(self.seeds, own, strict=True)
            for row, config in zip(self.rows, of_seed, strict=True)
        ]

    def _warmup(self, config: TrainConfig) -> int:
        """In iterations; what reads the data finds out, besides, whether they can be read."""
        steps = config.steps(load_data(config).steps_per_epoch(config.batch_size))
        own = RECIPES[config.recipe].fields.get("iterations")
        return round(config.warmup_iterations * steps / own) if own and self.scaled_warmup else config.warmup_iterations


def _shared(config: TrainConfig, configs: Sequence[TrainConfig]) -> TrainConfig:
    """Of `configs` with the same network and data as `config` the first that has a folder, or else the first.

    Every table has ResNet-110 with the original unit, say, under a name of its own; it is trained once.
    """

    def trained(config: TrainConfig) -> tuple[str, str, dict[str, Any]]:
        return config.model, config.data, {"shortcut": "identity"} | config.model_options

    same = [other for other in configs if trained(other) == trained(config)]
    return next((other for other in same if other.out.exists()), same[0])


def network(row: Row, depths: Sequence[int]) -> str:
    """The row's network at that of `depths` which fits its kind of units; its own for none. Raises AblationError if none of them does."""
    if not depths:
        return row.model
    bottleneck = architecture(row.model).bottleneck
    fitting = paper_depths(bottleneck)
    for depth in depths:
        if depth in fitting:
            return f"resnet{depth}"
    near = min(fitting, key=lambda depth: min(abs(depth - asked) for asked in depths))
    raise AblationError(
        f"argument --depth: expected {', '.join(map(str, fitting))} for row {row.id}, whose units are "
        f"{'bottlenecks (9n+2)' if bottleneck else 'of 3x3 layers (6n+2)'}, got {','.join(map(str, depths))}; the nearest is {near}"
    )


def prepare(ablation: Ablation, runs: Sequence[Run]) -> None:
    """Make the folder, or find that it is of the same ablation; the rows and seeds that are asked for of it may change.

    Raises AblationError, and leaves everything as it was, for a folder with other files in it or with other settings.
    """
    for name in NEEDED:
        require(name)
    out = ablation.out
    # In this order: another process may write its file between the two.
    full = out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir())
    if (out / ASKED).exists():
        _refuse_others(ablation)
    elif full:
        raise AblationError(
            f"argument --out: expected a new or empty folder or that of an ablation, got {str(out)!r}, which has no {ASKED}"
        )
    for run in runs:
        _refuse_other_run(run)
    asked = _shape(ablation) | {
        "rows": [row.id for row in ablation.rows],
        "seeds": list(ablation.seeds),
        "settings": ablation.settings.as_json(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / ASKED, asked)


def share(runs: Sequence[Run], rank: int, world: int) -> list[Run]:
    """What process number `rank` of `world` has to do, one run of every folder."""
    by_folder: dict[Path, Run] = {}
    for run in runs:
        by_folder.setdefault(run.config.out, run)
    return list(by_folder.values())[rank::world]


def train(runs: Sequence[Run]) -> Iterator[Run | str]:
    """Do what is left of `runs`, no two of one folder: each as it begins, and at last the name of a signal, if one ended it.

    A run whose loss diverges is at its end. Raises FolderInUse when another process trains the same run, DataError, CheckpointError and
    OSError as `fit` does.
    """
    with Interrupts() as interrupts:
        for run in runs:
            if run.done:
                continue
            yield run
            interrupted = diverged = None
            try:
                interrupted = fit(run.config, resume=True, interrupts=interrupts).interrupted
            except DivergedError as error:
                diverged = str(error)
            if not interrupted:
                write_json(run.config.out / OUTCOME, {"diverged": diverged})
            # One that came after the run's last step ends what follows it.
            if interrupts.signal:
                yield signal.Signals(interrupts.signal).name
                return


def wait(runs: Sequence[Run]) -> None:
    """Until all runs are done, by this process or others."""
    while not all(run.done for run in runs):
        time.sleep(_WAIT_SECONDS)


def _shape(ablation: Ablation) -> dict[str, Any]:
    """What else than the settings makes it another ablation."""
    own = {"data": "the rows'" if ablation.data_of_row else ablation.settings.data}
    return {"small": ablation.small, "depth": list(ablation.depths) or "the rows'"} | own


def _refuse_others(ablation: Ablation) -> None:
    path = ablation.out / ASKED
    try:
        asked = json.loads(path.read_text(encoding="utf-8"))
        stored, shape = TrainConfig.from_json(asked["settings"]), {name: asked[name] for name in _shape(ablation)}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise AblationError(f"argument --out: expected an ablation in {str(path)!r}, got something else: {error}") from None
    other = [f"{name} {_said(old)} (now {_said(new)})" for name, new in _shape(ablation).items() if (old := shape[name]) != new]
    other += differences(replace(stored, data=""), replace(ablation.settings, data=""))
    _refuse(ablation.out, other)


def _refuse_other_run(run: Run) -> None:
    """A run of its folder that is not `run`, as another length in iterations of the same epochs makes it."""
    path = run.config.out / CONFIG
    if not path.exists():
        return
    try:
        stored = TrainConfig.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise AblationError(f"argument --out: expected the config of a run in {str(path)!r}, got something else: {error}") from None
    _refuse(run.config.out, differences(stored, run.config))


def _refuse(folder: Path, other: list[str]) -> None:
    if other:
        raise AblationError(
            f"argument --out: expected a new folder, or the options that {str(folder)!r} began with, got others: {'; '.join(other)}"
        )


def _said(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
