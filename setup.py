"""Builds csrc/cpu as fused_preact._cpu, and csrc/cuda as fused_preact._cuda.

Where one is impossible the install succeeds without it, and `fused-preact env` says why.
"""

import functools
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
# Not the folder of temporaries that setuptools chooses: every way to install compiles into the same one, and ninja knows what is stale.
BUILD = Path("build")

COMMON = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
CPU = ["-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
# From the least demanding to the most.
ISAS = {"scalar": [], "avx2": AVX2, "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}
PER_ISA = ("bn", "bn_relu_conv2d_fwd", "bn_relu_conv2d_bwd", "probe")
ONCE = ("bn_vectors", "unit", "pool", "dispatch", "binding")

CUDA = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xptxas", "-warn-spills"]
CUDA_HOST = ("binding", "bn_relu_conv2d_bwd", "unit")
CUDA_DEVICE = (
    "bn",
    "bn_vectors",
    "bn_relu_conv2d_fwd",
    "bn_relu_conv2d_fwd_window",
    "bn_relu_conv2d_dgrad",
    "bn_relu_conv2d_dgrad_window",
    "bn_relu_conv2d_wgrad",
    "bn_relu_conv2d_wgrad_window",
    "bn_relu_conv2d_wgrad_sum",
)
CUDA_ARCHS = "FUSED_PREACT_CUDA_ARCHS"
CUDA_DEFAULT = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
CUDA_OLDEST = (12, 0)

# Set: a library that does not compile here is an error.
REQUIRED = "FUSED_PREACT_REQUIRE_NATIVE"


class NotBuiltError(Exception):
    """A library can't be built here; the message says why."""


class ToolMissingError(NotBuiltError):
    """Because a compiler is not there."""


@functools.cache
def compiler() -> list[str]:
    """$CXX, or the first C++ compiler there is."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for command in map(shlex.split, names):
        if shutil.which(command[0]):
            return command
    raise NotBuiltError(f"there is no C++ compiler ({', '.join(names)})")


def ninja() -> list[str]:
    if importlib.util.find_spec("ninja"):
        return [sys.executable, "-m", "ninja"]
    if program := shutil.which("ninja"):
        return [program]
    raise NotBuiltError("ninja is not installed; pip install ninja")


def includes() -> list[str]:
    """The flags for the headers of Python and pybind11."""
    if not importlib.util.find_spec("pybind11"):
        raise NotBuiltError("pybind11 is not installed; pip install pybind11")
    import pybind11

    python = sysconfig.get_path("include")
    if not Path(python, "Python.h").exists():
        raise NotBuiltError(f"Python's headers are not installed (no Python.h in {python})")
    return [f"-I{python}", f"-I{pybind11.get_include()}"]


def instruction_sets() -> list[str]:
    """Those of ISAS that the compiler knows."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ["scalar"]
    probe = ["-fsyntax-only", "-x", "c++", os.devnull]
    return [
        isa
        for isa, flags in ISAS.items()
        if not flags or subprocess.run([*compiler(), *flags, *probe], capture_output=True).returncode == 0
    ]


def nvcc() -> str:
    """The CUDA compiler: that of $CUDA_HOME, or from the path or where CUDA is installed."""
    if os.environ.get(CUDA_ARCHS, "").strip().lower() == "none":
        raise ToolMissingError(f"{CUDA_ARCHS} was none")
    home = os.environ.get("CUDA_HOME")
    program = shutil.which(f"{home}/bin/nvcc") if home else shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if not program:
        raise ToolMissingError(f"there is no nvcc in {home}/bin" if home else "there is no nvcc, in the path or in /usr/local/cuda/bin")
    said = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    version = re.search(r"release (\d+)\.(\d+)", said)
    if not version:
        raise ToolMissingError(f"{program} does not say which version it is")
    if (int(version[1]), int(version[2])) < CUDA_OLDEST:
        raise ToolMissingError(f"nvcc {version[1]}.{version[2]} is too old, expected {'.'.join(map(str, CUDA_OLDEST))} or newer")
    return program


def architectures(program: str) -> list[str]:
    """What to compile for: "9.0", or "9.0+PTX" for later ones too. Of the default, what this nvcc knows, the last of it with PTX."""
    known = set(re.findall(r"compute_(\d+)\b", subprocess.run([program, "--list-gpu-arch"], capture_output=True, text=True).stdout))
    given = [arch for arch in re.split(r"[\s,;]+", os.environ.get(CUDA_ARCHS, "")) if arch]
    for arch in given:
        if not re.fullmatch(r"\d+\.\d(\+PTX)?", arch) or float(arch.removesuffix("+PTX")) < 8:
            raise NotBuiltError(f"{CUDA_ARCHS} has {arch!r}, expected compute capabilities from 8.0 on, such as 9.0 or 9.0+PTX")
        if _number(arch) not in known:
            raise NotBuiltError(f"{CUDA_ARCHS} has {arch}, which this nvcc does not know")
    if given:
        return given
    *others, last = (arch for arch in CUDA_DEFAULT if _number(arch) in known)
    return [*others, f"{last}+PTX"]


def _number(arch: str) -> str:
    return arch.removesuffix("+PTX").replace(".", "")


def targets(archs: list[str]) -> list[str]:
    """nvcc's options for the architectures."""
    flags = []
    for arch in archs:
        number = _number(arch)
        code = f"[sm_{number},compute_{number}]" if arch.endswith("+PTX") else f"sm_{number}"
        flags += ["-gencode", f"arch=compute_{number},code={code}"]
    return flags


def rule(name: str, command: list[str], variable: str = "", depfile: bool = False) -> list[str]:
    """A ninja rule; `variable`: options that the command ends with, as written in the environment."""
    given = os.environ.get(variable, "") if variable else ""
    lines = [
        f"rule {name}",
        f"  command = {escape(shlex.join(command))} {'$flags -MMD -MF $out.d -c ' if depfile else ''}$in -o $out {escape(given)}",
    ]
    return lines + (["  deps = gcc", "  depfile = $out.d"] if depfile else []) + [f"  description = {name} $out"]


def compiled(rule: str, folder: str, target: str, source: str, flags: list[str] = ()) -> list[str]:
    return [f"build {BUILD}/{folder}/{target}.o: {rule} csrc/{folder}/{source}", f"  flags = {escape(shlex.join(flags))}"]


def linked(folder: str, targets: list[str]) -> str:
    return f"build {BUILD}/{folder}/_{folder}.so: link {' '.join(f'{BUILD}/{folder}/{target}.o' for target in targets)}"


def cpu_library() -> list[str]:
    """The lines of ninja's file."""
    isas = instruction_sets()
    flags = {"binding": includes(), "dispatch": [f"-DFUSED_PREACT_HAS_{isa}" for isa in isas]}
    # Templates of the standard library exist in many objects, and the linker takes the first: it must be one that every machine can run.
    objects = [(name, name, flags.get(name, [])) for name in ONCE]
    objects += [(f"{name}.{isa}", name, [*ISAS[isa], f"-DFUSED_PREACT_ISA={isa}"]) for isa in isas for name in PER_ISA]
    command = [*compiler(), *COMMON, *CPU, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    lines = [*rule("compile", command, depfile=True), *rule("link", [*command, "-shared"], "LDFLAGS")]
    for target, source, own in objects:
        lines += compiled("compile", "cpu", target, f"{source}.cpp", own)
    return [*lines, linked("cpu", [target for target, *_ in objects])]


def cuda_library() -> list[str]:
    """The lines of ninja's file. CUDA's runtime is linked in, so that the library runs beside every version of torch."""
    program = nvcc()
    archs = architectures(program)
    host = [*compiler(), *COMMON, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    device = [program, *CUDA, *(["-Xptxas", "-Werror"] if required() else []), *targets(archs)]
    link = [program, "-shared", "-cudart", "static", "-Xlinker", "--exclude-libs=ALL"]
    lines = [*rule("compile", host, depfile=True), *rule("cuda", device, depfile=True), *rule("link", link)]
    for source in CUDA_HOST:
        lines += compiled("compile", "cuda", source, f"{source}.cpp", [*includes(), f'-DFUSED_PREACT_CUDA_ARCHS="{" ".join(archs)}"'])
    for source in CUDA_DEVICE:
        lines += compiled("cuda", "cuda", source, f"{source}.cu")
    return [*lines, linked("cuda", [*CUDA_HOST, *CUDA_DEVICE])]


def required() -> bool:
    return os.environ.get(REQUIRED, "0") not in ("", "0")


def escape(text: str) -> str:
    return text.replace("$", "$$")


def build(name: str, lines: Callable[[], list[str]]) -> Path:
    """The library, up to date."""
    program, folder = ninja(), BUILD / name
    text = "\n".join([f"builddir = {folder}", *lines(), ""])
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    (ROOT / folder / "build.ninja").write_text(text, encoding="utf-8")
    if subprocess.run([*program, "-f", f"{folder}/build.ninja"], cwd=ROOT).returncode:
        raise NotBuiltError(f"csrc/{name} did not compile; pip install -v shows the compiler's messages")
    return ROOT / folder / f"_{name}.so"


LIBRARIES = {"cpu": cpu_library, "cuda": cuda_library}


class BuildNative(build_ext):
    """Puts into the package each library, or a file with the reason why it is not there."""

    def run(self) -> None:
        for name, lines in LIBRARIES.items():
            library = Path(self.get_ext_fullpath(f"fused_preact._{name}"))
            reason_file = library.with_name(f"_{name}_missing.txt")
            library.parent.mkdir(parents=True, exist_ok=True)
            try:
                built = build(name, lines)
            except (NotBuiltError, OSError) as reason:
                if required() and not isinstance(reason, ToolMissingError):
                    raise CompileError(str(reason)) from None
                library.unlink(missing_ok=True)
                reason_file.write_text(f"{reason}\n", encoding="utf-8")
                print(f"fused_preact._{name} is left out: {reason}", file=sys.stderr)
                continue
            # Replaced and not overwritten: running programs have the old one mapped.
            shutil.copy(built, fresh := library.with_suffix(".new"))
            fresh.replace(library)
            reason_file.unlink(missing_ok=True)


setup(ext_modules=[Extension(f"fused_preact._{name}", sources=[]) for name in LIBRARIES], cmdclass={"build_ext": BuildNative})
