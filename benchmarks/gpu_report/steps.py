"""Training steps of whole networks: eager PyTorch and fused, called and as CUDA graphs, and compiled."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_report.child import Job
from benchmarks.gpu_report.graphs import capture
from benchmarks.gpu_report.machine import now
from fused_preact.bench.agree import Disagreement, check
from fused_preact.bench.variants import Config, Variant, batch, build, common_weights, compiling, why_no_compile

ROUNDS = 10
# Times the usual: for building a thousand layers and choosing their algorithms; for torch.compile, which only its part's time may end.
PATIENCE, COMPILING = 1.5, 10.0
GRAPH = " graph"


class Network(NamedTuple):
    """What a part times, and the small network that stands for it in a dry run."""

    model: str
    batch_size: int
    dry_model: str


NETWORKS = {
    "resnet1001": Network("preact_resnet1001", 128, "preact_resnet29"),
    "resnet164": Network("preact_resnet164", 128, "preact_resnet20"),
    "resnet200": Network("preact_resnet200", 64, "preact_resnet20"),
}


def config_of(part: str, job: Job) -> Config:
    """bfloat16 by autocast over float32 weights."""
    network = NETWORKS[part]
    if job.dry:
        return Config(network.dry_model, 2, 32, job.device, "bfloat16")
    return Config(network.model, network.batch_size, None, job.device, "bfloat16")


def run(job: Job) -> None:
    steps = Steps(job, config_of(job.part, job))
    for name in steps.fused:
        steps.agree(name)
    plain = ["eager", *steps.fused]
    steps.time(plain)
    steps.time([name + GRAPH for name in plain if name not in job.failed])
    # It may hold as much memory as all the rest.
    steps.ready.pop("eager" + GRAPH, None)
    with steps.compiling():
        for name in steps.compiled:
            reason = None if job.dry else why_no_compile(job.device)
            if reason:
                if name not in job.skip:
                    job.write(name, error=reason, **steps.facts())
                continue
            steps.time([*plain, name], [name], COMPILING)
            if name not in job.failed:
                steps.time([*(fused + GRAPH for fused in steps.fused), name + GRAPH], [name + GRAPH], COMPILING)
                # It compiles for another batch size, which is why it comes last.
                steps.agree(name)


class Steps:
    """The variants of one network, built when they are first needed, and their steps, ready to be timed."""

    def __init__(self, job: Job, config: Config) -> None:
        self.job, self.config = job, config
        self.weights = common_weights(config)
        self.images, self.labels = batch(config)
        self.variants: dict[str, Variant] = {}
        self.ready: dict[str, Callable[[], object]] = {}
        self.agrees: dict[str, bool] = {}
        named = job.options.backends
        self.fused: dict[str, str | None] = {f"fused {name}": name for name in named} if named else {"fused": None}
        asked = {"compile whole": job.options.compile_whole, "compile max-autotune": job.options.max_autotune}
        self.compiled = ["compile", *(name for name, wanted in asked.items() if wanted)]

    def variant(self, name: str) -> Variant:
        """A variant by name; all of them are made from the same weights."""
        if name in self.variants:
            return self.variants[name]
        if name == "compile max-autotune":
            variant = build("eager", self.config, self.weights)
            for unit in variant.model.units():
                # Its own graphs, of single units, would be recorded a thousand times; that of the whole step has a row.
                unit.compile(dynamic=False, mode="max-autotune-no-cudagraphs")
        else:
            config = self.config._replace(backend=self.fused.get(name), compile_whole=name == "compile whole")
            variant = build(name.split()[0], config, self.weights)
        variant.name = name
        self.variants[name] = variant
        return variant

    def prepare(self, name: str) -> Callable[[], object]:
        """The training step `name`, called at least once; behind GRAPH, as a CUDA graph."""
        if name not in self.ready:
            variant = self.variant(name.removesuffix(GRAPH))

            def step() -> None:
                variant.step(self.images, self.labels)

            step()
            self.ready[name] = capture(step, self.job.device, warmup=2) if name.endswith(GRAPH) else step
        return self.ready[name]

    def agree(self, name: str) -> None:
        """The row that says whether a variant computes what eager PyTorch computes. It is timed in any case."""

        def agreement() -> dict[str, Any]:
            variant = self.variant(name)
            variant.model.load_state_dict(self.weights)
            # Algorithms chosen for four images and float64 would be used once.
            torch.backends.cudnn.benchmark = False
            try:
                errors = check([variant], self.config, self.weights)
            except Disagreement as error:
                return {"agrees": False, "error": str(error).removesuffix("; nothing was timed")}
            finally:
                torch.backends.cudnn.benchmark = True
            return {"agrees": True, "errors": {key: value._asdict() for key, value in errors.items()}}

        patience = PATIENCE if name in self.fused else COMPILING
        self.job.measure(f"agreement {name}", agreement, patience=patience)
        self.agrees[name] = f"agreement {name}" not in self.job.failed

    def time(self, names: Sequence[str], wanted: Sequence[str] | None = None, patience: float = PATIENCE) -> None:
        """Let the steps `names` take turns, and write the rows of those `wanted` (default: all), with the medians of the others."""
        wanted = [name for name in wanted or names if name not in self.job.skip]
        for name in wanted:
            self.job.attempt(name, functools.partial(self.prepare, name), patience=patience, **self.facts())
        steps = {name: self.ready[name] for name in names if name in self.ready}
        wanted = [name for name in wanted if name in steps]
        if not wanted:
            return
        rounds = 1 if self.job.dry else ROUNDS
        times = self.job.take_turns(steps, lambda name: self.facts(), patience, rounds=rounds, warmup=1, sample_ms=0.0)
        clocks = now() if self.job.on_gpu else None
        for name in (name for name in wanted if name in times):
            ms = times[name]
            numbers = {"ms": ms._asdict(), "images_per_s": self.config.batch_size / ms.median * 1e3, "clocks": clocks}
            numbers["beside"] = {other: time.median for other, time in times.items() if other != name}
            agrees = True if name.startswith("eager") else self.agrees.get(name.removesuffix(GRAPH))
            self.job.write(name, **self.facts(), **numbers, agrees=agrees)

    def facts(self) -> dict[str, Any]:
        """What every row says."""
        c = self.config
        return {"model": c.model, "batch": c.batch_size, "image_size": c.pixels, "dtype": c.dtype, "memory_mode": c.memory}

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Around compiled variants. A dry run does all but compile."""
        with compiling(), torch.compiler.set_stance("force_eager") if self.job.dry else contextlib.nullcontext():
            yield
