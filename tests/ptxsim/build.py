"""Compiles the simulator, and CUDA sources to libraries that run in it: csrc/cuda, and the kernels of its own tests.

They are linked with the simulator in place of libcudart, and keep their PTX. Symbols have a version of their own, so that a process may
have CUDA's runtime loaded too.
"""

import fcntl
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "ptxsim"
LIBRARY = BUILD / "libptxsim.so"
CXX = ["-std=c++17", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror"]
NVCC = [
    "-std=c++17",
    "-O3",
    "--expt-relaxed-constexpr",
    "-lineinfo",
    "-no-compress",
    "-gencode",
    "arch=compute_80,code=compute_80",
    "-Xcompiler",
    "-fPIC",
]


def nvcc() -> str | None:
    """The compiler, from the path or where CUDA is installed."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")


def missing() -> str | None:
    """What is needed and not there, in words."""
    there = {
        "nvcc": nvcc(),
        "g++": shutil.which("g++"),
        "pybind11": importlib.util.find_spec("pybind11"),
        "ninja": importlib.util.find_spec("ninja"),
    }
    return next((f"{name} is not installed" for name, found in there.items() if not found), None)


def ninja_file() -> str:
    """With paths from ROOT on: a folder above may have a space in its name."""
    import pybind11

    here, build, package = (path.relative_to(ROOT) for path in (HERE, BUILD, ROOT / "csrc" / "cuda"))

    def names(folder: Path, pattern: str) -> list[str]:
        return sorted(path.stem for path in (ROOT / folder).glob(pattern))

    cuda, host = shlex.join([str(nvcc()), *NVCC]), shlex.join(["g++", *CXX])
    headers = shlex.join([f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}", '-DFUSED_PREACT_CUDA_ARCHS="8.0+PTX"'])
    simulator, kernels = names(here, "*.cpp"), names(here / "kernels", "*.cu")
    device_parts, host_parts = names(package, "*.cu"), names(package, "*.cpp")
    lines = [
        f"builddir = {build}",
        *_compiling("compile", host),
        *_compiling("binding", f"{host} -fvisibility=hidden {headers}"),
        *_compiling("cuda", cuda),
        f"rule simulator\n  command = g++ -shared -Wl,-soname,{LIBRARY.name} -Wl,--version-script={here}/exports.map $in -o $out",
        f"rule library\n  command = {cuda} $in -shared -cudart none -Xlinker '-rpath=$$ORIGIN' -L{build} -lptxsim -o $out",
    ]
    lines += [f"build {build}/{name}.o: compile {here}/{name}.cpp" for name in simulator]
    lines += [f"build {build}/{LIBRARY.name}: simulator {' '.join(f'{build}/{name}.o' for name in simulator)} | {here}/exports.map"]
    for name in kernels:
        lines += [f"build {build}/kernels/{name}.o: cuda {here}/kernels/{name}.cu"]
        lines += [f"build {build}/lib{name}.so: library {build}/kernels/{name}.o | {build}/{LIBRARY.name}"]
    # The package's own, as fused_preact/backends/cuda/environment.py looks for it.
    lines += [f"build {build}/_cuda/{name}.o: cuda {package}/{name}.cu" for name in device_parts]
    lines += [f"build {build}/_cuda/{name}_host.o: binding {package}/{name}.cpp" for name in host_parts]
    objects = " ".join([f"{build}/_cuda/{name}.o" for name in device_parts] + [f"{build}/_cuda/{name}_host.o" for name in host_parts])
    lines += [f"build {build}/_cuda.so: library {objects} | {build}/{LIBRARY.name}"]
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
