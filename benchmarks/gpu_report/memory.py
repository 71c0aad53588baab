"""Bytes that forward keeps for backward, and peak bytes of a training step, of every network and memory mode."""

from typing import Any

import torch

from benchmarks.gpu_report.child import Job
from benchmarks.gpu_report.steps import NETWORKS, PATIENCE, config_of
from benchmarks.memory import weigh
from fused_preact.bench.variants import Config
from fused_preact.functional.preact_unit import MEMORIES


def run(job: Job) -> None:
    for part in job.shared(list(NETWORKS)):
        config = config_of(part, job)
        backend = job.options.backends[0] if job.options.backends else None
        variants = {"eager": config} | {f"fused {mode}": config._replace(memory=mode, backend=backend) for mode in MEMORIES}
        for name, own in variants.items():
            facts = {"network": part, "variant": name, "model": own.model, "batch": own.batch_size, "dtype": own.dtype}
            job.measure(f"{part} {name}", lambda name=name, own=own: _weighed(name, own), patience=PATIENCE, **facts)


def _weighed(name: str, config: Config) -> dict[str, Any]:
    try:
        return weigh(name.split()[0], config)
    finally:
        if config.device != "cpu":
            torch.cuda.empty_cache()
