"""A process that measures one part, or a share of it, and may die of it.

It imports what every part needs, then waits for a job as one line of JSON on stdin (or takes it from its only argument).
"""

import contextlib
import faulthandler
import functools
import gc
import importlib
import json
import os
import queue
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from benchmarks.gpu_report import graphs, rows
from fused_preact.backends import available_backends, backend
from fused_preact.backends.records import Case
from fused_preact.bench import agree, compare, memory  # noqa: F401  imported while the child waits
from fused_preact.bench.timing import Quartiles, interleaved
from fused_preact.models.shapes import LAYER_SHAPES  # noqa: F401

T = TypeVar("T")


class Options(NamedTuple):
    """What the command line says and every part may want to know.

    backends: empty: every native one that is usable.  patience: seconds for one row, enough for a kernel to compile.
    """

    device: str = "cuda"
    dry: bool = False
    backends: tuple[str, ...] = ()
    load: str | None = None
    compile_whole: bool = False
    max_autotune: bool = False
    patience: float = 60.0


class Job:
    """What a child has to do: its part, its share (i of n) of the tasks, where its rows go, and by `time.monotonic` its end.

    warm: only compile, write only failures.  label: stands before all names; where there is one, a tool watches.  From the file of rows:
    skip: rows to leave out, because they are written.  failed: those of them that are not ok.  ceilings: rates by name.
    """

    def __init__(
        self,
        part: str,
        module: str,
        file: str,
        child: int,
        end: float,
        options: dict[str, Any],
        share: tuple[int, int] = (0, 1),
        warm: bool = False,
        label: str = "",
    ) -> None:
        self.part, self.module, self.file, self.child = part, module, Path(file), child
        self.options = Options(**options | {"backends": tuple(options["backends"])})
        self.warm, self.label = warm, label
        self.first, self.step = share
        written = [row for row in rows.Tail(self.file).read() if "ok" in row]
        self.skip = {row["name"] for row in written if row["part"] == part}
        self.failed = {row["name"] for row in written if row["part"] == part and not row["ok"]}
        self.ceilings = {row["name"]: row["rate"] for row in written if row["part"] == "ceilings" and "rate" in row}
        self.end = end
        self.started: dict[str, float] = {}

    @property
    def device(self) -> str:
        return self.options.device

    @property
    def dry(self) -> bool:
        return self.options.dry

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    def left(self) -> float:
        """Seconds until no new row may start."""
        return self.end - time.monotonic()

    def shared(self, tasks: Sequence[T]) -> Sequence[T]:
        """Those of `tasks` that are this child's."""
        return tasks[self.first :: self.step]

    def backends(self) -> dict[str, Any]:
        """The backends to measure by name, a sentence in place of one that is not usable; eager where there is no native one."""
        names = self.options.backends
        if not names and self.on_gpu:
            names = [name for name, why_not in available_backends().items() if why_not is None and name not in ("cpu", "eager")]
        return {name: backend(name) for name in names or ("eager",)}

    def begin(self, name: str, patience: float = 1.0, facts: dict[str, Any] | None = None) -> None:
        """Say that `name` is being worked on; without news in `patience` times the usual the child will be killed, and `facts` stay."""
        name = self.label + name
        self.started.setdefault(name, time.monotonic())
        mark = {"begun": name, "part": self.part, "child": self.child, "patience": patience * self.options.patience}
        rows.append(self.file, mark | {"facts": facts or {}})

    def write(self, name: str, **numbers: Any) -> None:
        """The row `name`, which is not ok if `numbers` have an error."""
        name = self.label + name
        seconds = time.monotonic() - self.started.pop(name, time.monotonic())
        row = {"part": self.part, "name": name, "ok": not numbers.get("error"), **numbers, "seconds": round(seconds, 3)}
        rows.append(self.file, row | {"dry": True} if self.dry else row)
        self.skip.add(name)
        if not row["ok"]:
            self.failed.add(name)

    def usable(self, name: str, who: str, found: Any, case: Case, **facts: Any) -> bool:
        """Whether the backend `found` runs `case`; if not, its sentence becomes the row `name`."""
        refused = found if isinstance(found, str) else found.why_not(case)
        if refused and self.label + name not in self.skip:
            self.write(name, backend=who, error=f"refused: {refused}", **facts)
        return not refused

    def attempt(self, name: str, work: Callable[[], T], *, patience: float = 1.0, **facts: Any) -> T | None:
        """What `work` returns, for a row that the caller will write. If it raises that is the row, with `facts`, and None comes back.

        None too for a row to leave out, and when there is no time left. A process whose CUDA context is lost ends here.
        """
        if self.label + name in self.skip:
            return None
        if self.left() <= 0:
            if not self.warm:
                self.write(name, error=rows.NO_TIME, **facts)
            return None
        self.begin(name, patience, facts)
        try:
            result = work()
            if self.on_gpu:
                torch.cuda.synchronize()
            return result
        except Exception as error:
            traceback.print_exc()
            # Those who compile together share the memory; alone it may suffice.
            if not (self.warm and isinstance(error, torch.OutOfMemoryError)):
                self.write(name, error=rows.sentence(error), **facts)
        # The exception held its frames, and they held tensors.
        gc.collect()
        self.end_if_poisoned()
        if self.on_gpu:
            torch.cuda.empty_cache()
        return None

    def measure(self, name: str, work: Callable[[], dict[str, Any]], *, patience: float = 1.0, **facts: Any) -> None:
        """The row `name` from the numbers that `work` returns."""
        numbers = self.attempt(name, work, patience=patience, **facts)
        if numbers is not None:
            self.write(name, **facts, **numbers)

    def take_turns(
        self, functions: dict[str, Callable[[], object]], facts: Callable[[str], dict[str, Any]], patience: float = 1.0, **options: Any
    ) -> dict[str, Quartiles]:
        """`interleaved`, called again without the last function when it raises: each in turn is blamed, least trusted first."""
        functions = dict(functions)
        while functions:
            last = list(functions)[-1]
            work = functools.partial(interleaved, functions, device=self.device, **options)
            times = self.attempt(last, work, patience=patience, **facts(last))
            if times is not None:
                return times
            del functions[last]
        return {}

    def end_if_poisoned(self) -> None:
        """End the process if the GPU no longer answers it."""
        if not self.on_gpu:
            return
        try:
            torch.cuda.synchronize()
            # A capture that broke off may leave an allocator that thinks it is still capturing. A sanitizer's allocator can't capture.
            if not self.label:
                graphs.capture(lambda: torch.ones(1, device=self.device), self.device)()
            torch.cuda.synchronize()
        except Exception:
            leave(rows.POISONED)


def leave(code: int) -> None:
    """End at once: what runs at exit may hang on a lost device, and all rows are on disk."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(job: Job) -> None:
    """Everything that the job asks; what escapes becomes a row."""
    try:
        if job.options.load:
            runpy.run_path(job.options.load)
        torch.set_num_threads(1 if job.dry else max(1, torch.get_num_threads() // job.step))
        if ":" in job.device:
            torch.cuda.set_device(job.device)
        # What everyone who trains on fixed shapes sets.
        torch.backends.cudnn.benchmark = True
        importlib.import_module(f"benchmarks.gpu_report.{job.module}").run(job)
    except Exception as error:
        traceback.print_exc()
        job.write(f"child {job.child} of {job.part}", error=rows.sentence(error))
        job.end_if_poisoned()


def main() -> None:
    faulthandler.enable()
    with contextlib.suppress(AttributeError):
        faulthandler.register(signal.SIGUSR1)
    if sys.argv[1:]:
        run(Job(**json.loads(sys.argv[1])))
        leave(0)
    given: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(given,), daemon=True).start()
    if given.empty():
        # Nothing to do yet: import what only some parts need.
        importlib.import_module("torch._dynamo")
    while True:
        job = Job(**json.loads(given.get()))
        run(job)
        if not job.dry:
            leave(0)
        # A dry run is short of time, and of nothing that only a new process gives.
        rows.append(job.file, {"finished": job.child})


def _listen(given: "queue.SimpleQueue[str]") -> None:
    """Hand on jobs; the parent holds the other end as long as it lives."""
    for line in sys.stdin:
        given.put(line)
    leave(0)
