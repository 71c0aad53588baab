"""What the GPU reaches at best: copy bandwidth, and matmul rates on random data."""

from collections.abc import Callable

import torch

from benchmarks.gpu_report.child import Job
from benchmarks.gpu_report.machine import now
from fused_preact.bench.timing import interleaved

COPY_BYTES = 2 << 30
SIZE = 8192
ROUNDS = 10
MATMULS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32, "float32": torch.float32}


def run(job: Job) -> None:
    for name in ("copy", *(f"matmul {kind}" for kind in MATMULS)):
        job.measure(name, lambda name=name: _copy(job) if name == "copy" else _matmul(job, name.split()[1]))


def _copy(job: Job) -> dict[str, object]:
    count = (1 << 20) if job.dry else COPY_BYTES
    source = torch.randint(256, (count,), dtype=torch.uint8, device=job.device)
    target = torch.empty_like(source)
    # Bytes read and bytes written.
    return _timed(job, lambda: target.copy_(source), 2 * count, "gb_per_s", 1e9)


def _matmul(job: Job, kind: str) -> dict[str, object]:
    size = 64 if job.dry else SIZE
    a, b = (torch.randn(size, size, dtype=MATMULS[kind], device=job.device) for _ in range(2))
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    return _timed(job, lambda: a @ b, 2 * size**3, "tflop_per_s", 1e12)


def _timed(job: Job, call: Callable[[], object], amount: int, unit: str, scale: float) -> dict[str, object]:
    time = interleaved({"": call}, 2 if job.dry else ROUNDS, device=job.device)[""]
    rate = amount / time.median * 1e3
    return {"ms": time._asdict(), unit: rate / scale, "rate": rate, "clocks": now() if job.on_gpu else None}
