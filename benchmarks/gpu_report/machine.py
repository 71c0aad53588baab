"""What the numbers were measured on: versions, the GPU and its clocks. Nothing is set."""

import contextlib
import os
import shutil
import subprocess
from typing import Any

import torch

from benchmarks.gpu_report.child import Job
from fused_preact.backends import available_backends
from fused_preact.bench.machine import machine

QUERIES = (
    "name", "driver_version", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw", "power.limit",
    "temperature.gpu", "ecc.mode.current", "compute_mode", "persistence_mode", "clocks_throttle_reasons.active",
)  # fmt: skip
PREFIXES = ("CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "OMP_", "PYTORCH_", "TORCH", "TRITON_")


def run(job: Job) -> None:
    job.measure("versions", lambda: _versions(job.device))
    job.measure("backends", lambda: {"backends": {name: reason or "usable" for name, reason in available_backends().items()}})
    if job.on_gpu:
        job.measure("gpu", lambda: properties(job.device))
    job.measure("clocks", clocks)


def properties(device: str) -> dict[str, Any]:
    """The GPU as torch describes it."""
    p = torch.cuda.get_device_properties(device)
    return {
        "gpu": p.name,
        "capability": f"{p.major}.{p.minor}",
        "multiprocessors": p.multi_processor_count,
        "memory_bytes": p.total_memory,
        "l2_bytes": p.L2_cache_size,
        "gpus": torch.cuda.device_count(),
    }


def clocks() -> dict[str, Any]:
    """nvidia-smi's readings, or an error that says that there are none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"error": "nvidia-smi is not on PATH"}
    readings: dict[str, Any] = {}
    # One query at a time where a driver does not know all of them.
    for queries in (QUERIES, *((query,) for query in QUERIES)):
        command = [program, f"--query-gpu={','.join(queries)}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        if done.returncode == 0 and done.stdout.strip():
            readings |= dict(zip(queries, map(str.strip, done.stdout.splitlines()[0].split(",")), strict=True))
        if len(readings) == len(QUERIES):
            break
    return readings or {"error": f"nvidia-smi failed: {(done.stderr or done.stdout).strip().splitlines()[:1]}"}


def now() -> str | None:
    """SM and memory clock and temperature at this moment, for rows whose meaning depends on them."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        command = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,temperature.gpu", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.splitlines()[0]
    return None


def _versions(device: str) -> dict[str, Any]:
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith(PREFIXES)}
    return machine(device) | {"cudnn": torch.backends.cudnn.version(), "environment": variables}
