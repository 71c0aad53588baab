"""`fused-preact env`: what is installed, what can be used, and why the rest can not."""

import argparse
import json
from typing import Any

import torch

from fused_preact.backends import PREFERENCE, available_backends
from fused_preact.backends.cpu.environment import isa
from fused_preact.backends.cuda.environment import runs
from fused_preact.bench.machine import machine, version
from fused_preact.bench.variants import why_no_compile

HELP = "show versions, devices and backends, and why a backend is missing"
PACKAGES = ("numpy", "matplotlib", "pillow", "safetensors", "scikit-learn", "tqdm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The only option is the form."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Print the environment."""
    found = environment()
    print(json.dumps(found, indent=2) if args.json else _text(found))


def environment() -> dict[str, Any]:
    """Versions (None: not installed), devices, backends (None: usable, else why not), what cpu and cuda run, each device's first choice."""
    host = machine()
    backends = available_backends()
    names = ("fused_preact", "commit", "python", "torch", "triton", "cuda")
    devices = {"cpu": f"{host['cpu']}, cores {host['cores']}, threads {host['threads']}"}
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
    kinds = sorted({name.partition(":")[0] for name in devices})
    return {
        "versions": {name: host[name] for name in names} | {package: version(package) for package in PACKAGES},
        "system": host["system"],
        "devices": devices,
        "backends": backends,
        "instruction_set": isa() if backends["cpu"] is None else None,
        "cuda_library": runs() if backends["cuda"] is None else None,
        "default_backend": {kind: next(name for name in PREFERENCE[kind] if backends[name] is None) for kind in kinds},
        "compile": {kind: why_no_compile(kind) for kind in kinds},
    }


def _text(found: dict[str, Any]) -> str:
    usable = {"cpu": f"usable, with {found['instruction_set']}", "cuda": f"usable, {found['cuda_library']}"}
    sections = {
        "versions": {name: value or "-" for name, value in found["versions"].items()},
        "devices": {"system": found["system"]} | found["devices"],
        "backends": {name: f"not usable: {reason}" if reason else usable.get(name, "usable") for name, reason in found["backends"].items()},
        "default backend": {f"on {kind}": name for kind, name in found["default_backend"].items()},
        "torch.compile": {f"on {kind}": reason or "usable" for kind, reason in found["compile"].items()},
    }
    width = max(len(name) for rows in sections.values() for name in rows)
    return "\n\n".join(
        "\n".join([title, *(f"  {name:{width}}  {value}" for name, value in rows.items())]) for title, rows in sections.items()
    )
