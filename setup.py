"""Builds csrc/cpu as fused_preact._cpu. Where that is impossible the install succeeds without it, and `fused-preact env` says why."""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
SOURCES = Path("csrc/cpu")
# Not the folder of temporaries that setuptools chooses: every way to install compiles into the same one, and ninja knows what is stale.
BUILD = Path("build/cpu")

COMMON = ["-std=c++20", "-O3", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wextra"]
ARITHMETIC = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
# From the least demanding to the most.
ISAS = {"scalar": [], "avx2": AVX2, "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}
PER_ISA = ("bn", "bn_relu_conv2d_fwd", "bn_relu_conv2d_bwd", "probe")
ONCE = ("bn_vectors", "unit", "pool", "dispatch", "binding")


class NotBuiltError(Exception):
    """The library can't be built here; the message says why."""


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


def instruction_sets(cxx: list[str]) -> list[str]:
    """Those of ISAS that the compiler knows."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ["scalar"]
    probe = ["-fsyntax-only", "-x", "c++", os.devnull]
    return [isa for isa, flags in ISAS.items() if not flags or subprocess.run([*cxx, *flags, *probe], capture_output=True).returncode == 0]


def ninja_file(cxx: list[str]) -> str:
    isas = instruction_sets(cxx)
    flags = {"binding": includes(), "dispatch": [f"-DFUSED_PREACT_HAS_{isa}" for isa in isas]}
    # Templates of the standard library exist in many objects, and the linker takes the first: it must be one that every machine can run.
    objects = [(name, name, flags.get(name, [])) for name in ONCE]
    objects += [(f"{name}.{isa}", name, [*ISAS[isa], f"-DFUSED_PREACT_ISA={isa}"]) for isa in isas for name in PER_ISA]
    given = {name: os.environ.get(name, "") for name in ("CXXFLAGS", "LDFLAGS")}
    command = shlex.join([*cxx, *COMMON, *ARITHMETIC])
    lines = [
        f"builddir = {BUILD}",
        "rule compile",
        f"  command = {escape(command)} $flags {escape(given['CXXFLAGS'])} -MMD -MF $out.d -c $in -o $out",
        "  deps = gcc",
        "  depfile = $out.d",
        "  description = compile $out",
        "rule link",
        f"  command = {escape(command)} {escape(given['CXXFLAGS'])} -shared $in -o $out {escape(given['LDFLAGS'])}",
        "  description = link $out",
    ]
    for target, source, own in objects:
        lines += [f"build {BUILD}/{target}.o: compile {SOURCES}/{source}.cpp", f"  flags = {escape(shlex.join(own))}"]
    return "\n".join([*lines, f"build {BUILD}/_cpu.so: link {' '.join(f'{BUILD}/{target}.o' for target, *_ in objects)}", ""])


def escape(text: str) -> str:
    return text.replace("$", "$$")


def build() -> Path:
    """The library, up to date."""
    program, text = ninja(), ninja_file(compiler())
    (ROOT / BUILD).mkdir(parents=True, exist_ok=True)
    (ROOT / BUILD / "build.ninja").write_text(text, encoding="utf-8")
    if subprocess.run([*program, "-f", f"{BUILD}/build.ninja"], cwd=ROOT).returncode:
        raise NotBuiltError("csrc/cpu did not compile; pip install -v shows the compiler's messages")
    return ROOT / BUILD / "_cpu.so"


class BuildNative(build_ext):
    """Puts into the package either the library or a file with the reason why there is none."""

    def run(self) -> None:
        library = Path(self.get_ext_fullpath("fused_preact._cpu"))
        reason_file = library.with_name("_cpu_missing.txt")
        library.parent.mkdir(parents=True, exist_ok=True)
        try:
            built = build()
        except (NotBuiltError, OSError) as reason:
            if os.environ.get("FUSED_PREACT_REQUIRE_NATIVE"):
                raise CompileError(str(reason)) from None
            library.unlink(missing_ok=True)
            reason_file.write_text(f"{reason}\n", encoding="utf-8")
            print(f"fused_preact._cpu is left out: {reason}", file=sys.stderr)
            return
        # Replaced and not overwritten: running programs have the old one mapped.
        shutil.copy(built, fresh := library.with_suffix(".new"))
        fresh.replace(library)
        reason_file.unlink(missing_ok=True)


setup(ext_modules=[Extension("fused_preact._cpu", sources=[])], cmdclass={"build_ext": BuildNative})
