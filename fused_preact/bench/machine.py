"""What a measurement was made on."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import fused_preact


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Processor, GPU (None on a CPU), cores, threads and versions, as JSON has them; `commit` is None outside a git checkout."""
    device = torch.device(device)
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "cuda": torch.version.cuda,
        "fused_preact": fused_preact.__version__,
        "commit": commit(),
    }


def summary(machine: dict[str, Any]) -> str:
    """A machine on one line."""
    processor = machine["gpu"] or f"{machine['cpu']}, cores {machine['cores']}, threads {machine['threads']}"
    names = ("fused_preact", "commit", "torch", "cuda", "triton", "python")
    return f"{processor}; " + ", ".join(f"{name} {machine[name]}" for name in names if machine[name])


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor as it calls itself; on x86 with family and model, because under a hypervisor two generations share one name."""
    with contextlib.suppress(OSError):
        # The first processor's lines, up to an empty one.
        lines = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").partition("\n\n")[0].splitlines())
        fields = {key.strip(): value.strip() for key, _, value in lines}
        if name := fields.get("model name"):
            numbers = [f"{words} {fields[key]}" for words, key in (("family", "cpu family"), ("model", "model")) if key in fields]
            return f"{name} ({', '.join(numbers)})" if numbers else name
    return platform.processor() or platform.machine()


def version(package: str) -> str | None:
    """The installed version of `package`, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Short hash of the checkout that fused_preact is imported from, "+" appended if files differ from it."""
    root = Path(fused_preact.__file__).resolve().parent.parent
    # An installed package may lie inside somebody else's repository.
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
