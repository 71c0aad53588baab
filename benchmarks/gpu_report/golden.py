"""Golden vectors for the simulator of CUDA kernels (tests/ptxsim): its test kernels, run on the GPU."""

import ctypes
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_report.child import Job
from tests.ptxsim import golden
from tests.ptxsim.build import nvcc

KERNELS = Path(golden.__file__).parent / "kernels"


def run(job: Job) -> None:
    job.measure("golden vectors", lambda: _record(job), patience=4)


def _record(job: Job) -> dict[str, Any]:
    if not job.on_gpu:
        return {"file": None, "vectors": len(golden.calls())}
    if nvcc() is None:
        return {"error": "nvcc is not installed"}
    with tempfile.TemporaryDirectory() as folder, torch.cuda.device(job.device):
        libraries = {name: _library(name, Path(folder)) for name in {call.library for call in golden.calls().values()}}
        results = golden.record(lambda call: _call(libraries[call.library], call, job.device))
    file = job.file.with_name(golden.FILE.name)
    with file.open("wb") as out:
        np.savez_compressed(out, **results)
    return {"file": file.name, "vectors": len(results)}


def _library(name: str, folder: Path) -> ctypes.CDLL:
    library = folder / f"lib{name}.so"
    command = [
        str(nvcc()),
        "-std=c++17",
        "-O3",
        "-arch=native",
        "-Xcompiler",
        "-fPIC",
        "-shared",
        str(KERNELS / f"{name}.cu"),
        "-o",
        str(library),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return ctypes.CDLL(str(library))


def _call(library: ctypes.CDLL, call: golden.Call, device: str) -> np.ndarray:
    """The output, through tensors of bytes on the GPU."""
    tensors = [torch.from_numpy(array.reshape(-1).view(np.uint8)).to(device) for array in (*call.inputs, call.output)]
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    torch.cuda.synchronize(device)
    error = getattr(library, call.function)(*call.first, *pointers, *call.last)
    if error:
        raise RuntimeError(f"{call.function} of {call.library}.cu gave CUDA error {error}")
    torch.cuda.synchronize(device)
    return tensors[-1].cpu().numpy().view(call.output.dtype).reshape(call.output.shape)
