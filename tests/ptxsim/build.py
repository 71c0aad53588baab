"""Compiles the simulator, and CUDA sources to libraries that run in it: csrc/cuda, and the kernels of its own tests.

They are linked with the simulator in place of libcudart, and keep their PTX. Symbols have a version of their own, so that a process may
have CUDA's runtime loaded too.
"""

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "ptxsim"
LIBRARY = BUILD / "libptxsim.so"
CXX = ["-std=c++17", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror"]
NVCC = ["-std=c++17", "-O3", "-lineinfo", "-no-compress", "-gencode", "arch=compute_80,code=compute_80", "-Xcompiler", "-fPIC"]


def nvcc() -> str | None:
    """The compiler, from the path or where CUDA is installed."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")


def missing() -> str | None:
    """What is needed and not there, in words."""
    if not nvcc():
        return "nvcc is not installed"
    return None if shutil.which("g++") else "g++ is not installed"


def ninja_file() -> str:
    sources, kernels, package = sorted(HERE.glob("*.cpp")), sorted((HERE / "kernels").glob("*.cu")), ROOT / "csrc" / "cuda"
    cuda, link = f"{nvcc()} {shlex.join(NVCC)}", f"-shared -cudart none -Xlinker -rpath={BUILD} -L{BUILD} -lptxsim"
    host = f"g++ {shlex.join(CXX)}"
    binding = (
        f"{host} -fvisibility=hidden -I{sysconfig.get_path('include')} -I{pybind11.get_include()} '-DFUSED_PREACT_CUDA_ARCHS=\"8.0+PTX\"'"
    )
    objects = [f"{BUILD}/{source.stem}.o" for source in sources]
    parts = [f"{BUILD}/_cuda/{source.stem}.o" for source in sorted(package.glob("*.cu"))]
    lines = [
        f"builddir = {BUILD}",
        *_compiling("compile", host),
        *_compiling("binding", binding),
        *_compiling("cuda", cuda),
        f"rule simulator\n  command = g++ -shared -Wl,-soname,{LIBRARY.name} -Wl,--version-script={HERE}/exports.map $in -o $out",
        f"rule library\n  command = {cuda} $in {link} -o $out",
    ]
    lines += [f"build {BUILD}/{source.stem}.o: compile {source}" for source in sources]
    lines += [f"build {LIBRARY}: simulator {' '.join(objects)} | {HERE}/exports.map"]
    lines += [f"build {BUILD}/{kernel.stem}.kernel.o: cuda {kernel}" for kernel in kernels]
    lines += [f"build {BUILD}/lib{kernel.stem}.so: library {BUILD}/{kernel.stem}.kernel.o | {LIBRARY}" for kernel in kernels]
    # The package's own, as fused_preact/backends/cuda/environment.py looks for it.
    lines += [f"build {BUILD}/_cuda/{source.stem}.o: cuda {source}" for source in sorted(package.glob("*.cu"))]
    lines += [f"build {BUILD}/_cuda/binding.o: binding {package}/binding.cpp"]
    lines += [f"build {BUILD}/_cuda.so: library {BUILD}/_cuda/binding.o {' '.join(parts)} | {LIBRARY}"]
    return "\n".join([*lines, ""])


def _compiling(rule: str, command: str) -> list[str]:
    return [f"rule {rule}", f"  command = {command} -MMD -MF $out.d -c $in -o $out", "  deps = gcc", "  depfile = $out.d"]


def build() -> None:
    """Brings all libraries up to date; processes that ask at the same time wait for one another."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (BUILD / "build.ninja").write_text(ninja_file(), encoding="utf-8")
        done = subprocess.run([sys.executable, "-m", "ninja", "-f", BUILD / "build.ninja"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the simulator did not compile:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    build()
