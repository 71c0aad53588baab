"""NVIDIA's tools over a few calls: compute-sanitizer, and Nsight Compute when it is asked for. Each runs a child of this child."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import torch

from benchmarks.gpu_report.calls import Inputs
from benchmarks.gpu_report.child import Job
from benchmarks.gpu_report.primitives import CIFAR_BATCH, DTYPE, IMAGENET_BATCH, RANKED, fused, ordered
from benchmarks.gpu_report.rows import CHILD

FOLDER = "/usr/local/cuda/bin"
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
FOUND = re.compile(r"=========\s+((?:Invalid|Error|Race|Potential|Program hit|Barrier|Uninitialized|Device not supported|Unable)\b.*)")
# A tool that just sits there holds up nothing else: these parts come last.
PATIENCE = 1e6
PROFILED = 4


def run(job: Job) -> None:
    if job.label:
        _profiled(job)
    elif job.part == "profile":
        job.measure("ncu", lambda: _profile(job), patience=PATIENCE)
    else:
        for tool in ("memcheck", "racecheck"):
            job.measure(tool, lambda tool=tool: _sanitize(job, tool), patience=PATIENCE)


def found(program: str) -> str | None:
    """Where a program of the CUDA toolkit is."""
    return shutil.which(program) or shutil.which(program, path=FOLDER)


def _sanitize(job: Job, tool: str) -> dict[str, Any]:
    program = found("compute-sanitizer")
    if program is None:
        return {"error": f"compute-sanitizer is neither on PATH nor in {FOLDER}"}
    # torch's allocator gives pieces of large blocks, and hides what is written beside a tensor.
    command = [program, "--tool", tool, "--print-limit", "20"]
    code, text = _under(job, command, "correctness", f"{tool} ", {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    summary, first = SUMMARY.search(text), FOUND.search(text)
    if summary is None:
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
        ended = "killed: no time left" if code is None else f"exit code {code}"
        return {"error": f"{tool} gave no summary, {ended}: {(first.group(1) if first else last)[:200]}"}
    count = int(summary.group(1))
    return {"errors": count} | ({"error": f"{count} errors, the first: {first.group(1) if first else 'see the log'}"} if count else {})


def _profile(job: Job) -> dict[str, Any]:
    program = found("ncu")
    if program is None:
        return {"error": f"ncu is neither on PATH nor in {FOLDER}"}
    command = [program, "--clock-control", "none", "--set", "basic", "--profile-from-start", "off"]
    code, text = _under(job, command, "tools", "profiled ", {})
    file = job.file.with_name("profile.txt")
    file.write_text(text[:8_000_000], encoding="utf-8")
    found_none = {} if "Duration" in text else {"error": f"ncu profiled nothing, exit code {code}; see {file.name}"}
    return {"file": file.name} | found_none


def _under(job: Job, command: list[str], module: str, label: str, variables: dict[str, str]) -> tuple[int | None, str]:
    """Run a child of its own under a tool, until this part's time is up: exit code (None: killed) and all that was printed."""
    own = {"part": job.part, "module": module, "file": str(job.file), "child": 0, "end": job.end, "label": label}
    own |= {"options": job.options._asdict()}
    command = [*command, sys.executable, *CHILD, json.dumps(own)]
    # A file and no pipe: when only the tool is killed, what it started keeps a pipe open. It dies with this child's process group.
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=os.environ | variables)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(1.0, job.left() - 1))
        code = process.poll()
        process.kill()
        file.seek(0)
        text = file.read().decode(errors="replace")
    print(text)
    return code, text


def _profiled(job: Job) -> None:
    """One forward and one backward of the most valuable shapes, between the marks that ncu listens to."""
    for shape in ordered({})[:PROFILED]:
        batch = 2 if job.dry else IMAGENET_BATCH if RANKED[1] in shape.networks else CIFAR_BATCH
        inputs = Inputs(shape.layer, batch, DTYPE, job.device)
        for backend in job.backends().values():
            for form, call in fused(inputs).items():
                if isinstance(backend, str) or form not in ("fwd", "bwd g"):
                    continue
                call(backend)
                with torch.cuda.profiler.profile() if job.on_gpu else contextlib.nullcontext():
                    call(backend)
