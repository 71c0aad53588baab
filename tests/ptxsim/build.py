"""Compiles the simulator, and CUDA sources to libraries that run in it.

They are linked with the simulator in place of libcudart, and keep their PTX. Symbols have a version of their own, so that a process may
have CUDA's runtime loaded too.
"""

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

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
    sources, kernels = sorted(HERE.glob("*.cpp")), sorted([*(HERE / "kernels").glob("*.cu"), *(HERE.parent / "cuda").glob("*.cu")])
    cuda = f"{nvcc()} {shlex.join(NVCC)} -shared -cudart none -Xlinker -rpath={BUILD} -L{BUILD} -lptxsim"
    lines = [
        f"builddir = {BUILD}",
        f"rule compile\n  command = g++ {shlex.join(CXX)} -MMD -MF $out.d -c $in -o $out\n  deps = gcc\n  depfile = $out.d",
        f"rule link\n  command = g++ -shared -Wl,-soname,{LIBRARY.name} -Wl,--version-script={HERE}/exports.map $in -o $out",
        f"rule cuda\n  command = {cuda} -MD -MF $out.d $in -o $out\n  deps = gcc\n  depfile = $out.d",
    ]
    lines += [f"build {BUILD}/{source.stem}.o: compile {source}" for source in sources]
    lines += [f"build {LIBRARY}: link {' '.join(f'{BUILD}/{source.stem}.o' for source in sources)} | {HERE}/exports.map"]
    lines += [f"build {BUILD}/lib{kernel.stem}.so: cuda {kernel} | {LIBRARY}" for kernel in kernels]
    return "\n".join([*lines, ""])


def build() -> None:
    """Brings all libraries up to date; processes that ask at the same time wait for one another."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (BUILD / "build.ninja").write_text(ninja_file(), encoding="utf-8")
        done = subprocess.run([sys.executable, "-m", "ninja", "-f", BUILD / "build.ninja"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the simulator did not compile:\n{done.stdout}{done.stderr}")
