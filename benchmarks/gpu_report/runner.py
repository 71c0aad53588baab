"""The parent: gives parts to child processes, keeps to the budget, and outlives whatever they do."""

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_report.parts import Part
from benchmarks.gpu_report.rows import CHILD, NO_TIME, POISONED, Row, Tail, append

ROOT = Path(__file__).resolve().parents[2]
# No part starts with less.
LEAST = 5.0
# A part whose time is up may finish the row that it is in.
GRACE = 10.0
# A part that kills its children again and again is given up.
DEATHS = 8
# What a child prints is kept up to here: a compiler that fails may print its whole input.
LOG_BYTES, WHOLE_LOG_BYTES = 400_000, 8_000_000
POLL = 0.05
TIME_UP = "killed: the time of this part was up"


class Child:
    """A child process: idle until it is given a job. It leads a process group, so that whatever it starts dies with it."""

    count = 0

    def __init__(self) -> None:
        Child.count += 1
        self.number = Child.count
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
        self.process = subprocess.Popen(
            [sys.executable, *CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        os.set_blocking(self.process.stdout.fileno(), False)
        self.job: dict[str, Any] = {}
        # The mark of what it works on, and when we lose patience with that.
        self.begun: Row | None = None
        self.due = math.inf
        self.finished = False
        self.printed, self.last = 0, ""

    def give(self, job: dict[str, Any]) -> None:
        """Start the job; stdin stays open, because its end tells a child that its parent died."""
        self.job = job | {"child": self.number}
        self.begun, self.due, self.finished = None, math.inf, False
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(self.job).encode() + b"\n")
            self.process.stdin.flush()

    def pump(self, log: Path) -> None:
        """Move what it printed to the log."""
        text = self.process.stdout.read() or b""
        if not text:
            return
        lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
        self.last = lines[-1] if lines else self.last
        with open(log, "ab") as file:
            file.write(text[: max(0, min(LOG_BYTES - self.printed, WHOLE_LOG_BYTES - file.tell()))])
        self.printed += len(text)

    def kill(self) -> None:
        """End it and everything it started, whatever state it is in."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.stdout.close()

    def epitaph(self) -> str:
        """How it ended."""
        code = self.process.returncode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the process died with {how}" + (f"; it last printed: {self.last[:200]}" if self.last else "")


class Runner:
    """Runs parts one after the other until `end` (`time.monotonic`), each in children of its own; `rows` has every row there is."""

    def __init__(self, out: Path, options: dict[str, Any], end: float, workers: int | None, tell: Callable[[str], object]) -> None:
        self.file, self.log = out / "rows.jsonl", out / "log.txt"
        self.options, self.workers, self.tell = options, workers, tell
        self.end = end
        self.rows: list[Row] = []
        self.tail = Tail(self.file)
        self.children: dict[int, Child] = {}
        self.spare: Child | None = None

    def run(self, part: Part, later: Sequence[Part]) -> float:
        """One part, within its share of what is left beside the parts `later`; returns the seconds it took."""
        started = time.monotonic()
        left = self.end - started
        if left < LEAST:
            self._row(part, part.name, NO_TIME)
            return 0.0
        share = left * part.seconds / (part.seconds + sum(other.seconds for other in later))
        until = started + max(share, LEAST)
        if part.warm and self.options["device"] != "cpu":
            self._children(part, self._count(part, part.warm), started + 0.5 * (until - started), warm=True)
        self._children(part, self._count(part, part.workers), until, warm=False)
        seconds = time.monotonic() - started
        mine = [row for row in self.rows if row["part"] == part.name]
        failed = sum(not row["ok"] for row in mine)
        self.tell(f"{part.name}: {len(mine)} rows, {failed} not ok, {seconds:.0f} s")
        return seconds

    def close(self) -> None:
        """End all children that are left."""
        for child in [*self.children.values(), *filter(None, [self.spare])]:
            child.pump(self.log)
            child.kill()
        self.children.clear()
        self.spare = None
        self._read()

    def _count(self, part: Part, wanted: int) -> int:
        if self.options["dry"] or wanted == 1:
            return 1
        memory = next((row["memory_bytes"] for row in self.rows if "memory_bytes" in row), 16e9)
        most = self.workers or max(1, 3 * (os.cpu_count() or 1) // 4)
        return max(1, min(wanted, most, int(memory / 1e9 / part.gigabytes)))

    def _children(self, part: Part, count: int, until: float, warm: bool) -> None:
        """Run the part in `count` children that share its tasks; one that dies goes on in another, without the row it died of."""
        for i in range(count):
            self._start(part, (i, count), until, warm)
        deaths = 0
        while self.children:
            self._listen()
            for child in list(self.children.values()):
                verdict = self._verdict(child, min(until + GRACE, self.end))
                if verdict is None:
                    continue
                if child.finished and self.spare is None:
                    del self.children[child.number]
                    self.spare = child
                    continue
                code = 0 if child.finished else child.process.poll()
                child.pump(self.log)
                child.kill()
                # Its last marks, before it is forgotten.
                self._read()
                del self.children[child.number]
                if code == 0 or (warm and verdict == TIME_UP):
                    continue
                deaths += 1
                blamed = self._blame(part, child, code, verdict or child.epitaph())
                if deaths == DEATHS:
                    self._row(part, f"rest of {part.name}", f"given up: {deaths} of its processes died")
                elif blamed and deaths < DEATHS and until - time.monotonic() > 1:
                    self._start(part, child.job["share"], until, warm)

    def _start(self, part: Part, share: tuple[int, int], until: float, warm: bool) -> None:
        child, self.spare = self.spare or Child(), None
        self.children[child.number] = child
        child.give(
            {
                "part": part.name,
                "module": part.module,
                "file": str(self.file),
                "end": until,
                "options": self.options,
                "share": share,
                "warm": warm,
            }
        )
        if not self.options["dry"]:
            # The next one imports while this one works.
            self.spare = Child()

    def _verdict(self, child: Child, limit: float) -> str | None:
        """None while it works and answers; "" when it ended by itself; otherwise why it must be killed."""
        if child.finished or child.process.poll() is not None:
            return ""
        now = time.monotonic()
        if now > limit:
            return TIME_UP
        if child.begun and now > child.due:
            # Says in the log where it hangs.
            child.process.send_signal(signal.SIGUSR1)
            time.sleep(0.2)
            return f"killed: no answer for {child.begun['patience']:.0f} s"
        return None

    def _blame(self, part: Part, child: Child, code: int | None, error: str) -> bool:
        """A row for the child's end; whether a new one will get further, because it leaves out what this one died of."""
        written = {row["name"] for row in self.rows if row["part"] == part.name}
        if child.begun and child.begun["begun"] not in written:
            self._row(part, child.begun["begun"], error, child.begun["facts"])
        elif code != POISONED or child.begun is None:
            self._row(part, f"child {child.number} of {part.name}", error)
        return child.begun is not None

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for child in self.children.values():
                if child.process.poll() is None:
                    selector.register(child.process.stdout, selectors.EVENT_READ)
            selector.select(POLL)
        for child in self.children.values():
            child.pump(self.log)
        self._read()

    def _read(self) -> None:
        for row in self.tail.read():
            if "ok" in row:
                self.rows.append(row)
                for child in self.children.values():
                    if child.begun and child.begun["begun"] == row["name"]:
                        child.due = math.inf
                continue
            child = self.children.get(row.get("finished", row.get("child")))
            if child is not None:
                child.finished = "finished" in row
                if not child.finished:
                    child.begun, child.due = row, time.monotonic() + row["patience"]

    def _row(self, part: Part, name: str, error: str, facts: Row | None = None) -> None:
        row = {"part": part.name, "name": name, "ok": False, **(facts or {}), "error": error, "seconds": 0.0}
        append(self.file, row | {"dry": True} if self.options["dry"] else row)
        self._read()
