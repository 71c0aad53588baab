"""The architecture: imports point down, importing needs torch alone, files stay short, native code is torch-free."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fused_preact

ROOT = Path(fused_preact.__file__).resolve().parent
PROJECT = ROOT.parent

# From the top; a module may import its own layer and those below.
LAYERS = (
    ("cli", "__main__"),
    ("paper",),
    ("train", "bench", "tune"),
    ("models", "convert", "data"),
    ("modules",),
    ("functional",),
    ("ops",),
    ("backends",),
    ("_text", "_files", "_extras"),
    ("_cpu", "_cuda"),
)
# Built from csrc.
NATIVE = {"_cpu", "_cuda"}
HEIGHT = {name: len(LAYERS) - i for i, names in enumerate(LAYERS) for name in names}
MODULES = sorted(ROOT.rglob("*.py"))


def layer_of(dotted: str) -> str:
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> list[str]:
    """Full names of everything of the package that `path` imports, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            found += [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "fused_preact" else [node.module]
    return [name for name in found if name.split(".")[0] == "fused_preact"]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    own = layer_of(".".join(("fused_preact", *path.relative_to(ROOT).with_suffix("").parts)))
    if own == "__init__":
        return
    for name in imports(path):
        if name in ("fused_preact", "fused_preact.__version__"):
            assert HEIGHT[own] >= HEIGHT["bench"], f"{own} imports the whole package"
            continue
        other = layer_of(name)
        assert other in HEIGHT, f"{path.name} imports {name}, which is in no layer"
        assert HEIGHT[other] <= HEIGHT[own], f"{own} imports {name}, which lies above it"


def test_every_module_is_in_a_layer():
    tops = {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in MODULES}
    assert tops - {"__init__"} == set(HEIGHT) - NATIVE


def test_importing_needs_torch_and_nothing_else():
    """Whatever only the extras bring must not be imported with the package."""
    extras = ("numpy", "sklearn", "safetensors", "tqdm", "matplotlib", "triton", "pybind11", "ninja", "scipy", "PIL")
    # A None entry makes an import of that name fail.
    code = f"import sys; import torch; sys.modules.update(dict.fromkeys({extras!r})); import fused_preact, fused_preact.cli"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


SOURCES = [p for folder in ("fused_preact", "csrc", "benchmarks", "tests") for p in (PROJECT / folder).rglob("*") if p.is_file()]


def test_files_stay_under_400_lines():
    code = [p for p in SOURCES if p.suffix in {".py", ".cpp", ".cc", ".cu", ".cuh", ".h"}]
    long = {str(p.relative_to(PROJECT)): n for p in code if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long


def test_native_code_is_torch_free():
    for path in SOURCES:
        if path.is_relative_to(PROJECT / "csrc"):
            text = path.read_text(encoding="utf-8")
            assert not any(f"#include {quote}{head}/" in text for head in ("torch", "ATen", "c10") for quote in '<"'), path


def test_one_file_of_a_library_binds_it():
    """pybind11 takes seconds to compile, and the others are compiled once for every instruction set."""
    users = {p for p in SOURCES if p.is_relative_to(PROJECT / "csrc") and "#include <pybind11" in p.read_text(encoding="utf-8")}
    assert users == {PROJECT / "csrc" / library / "binding.cpp" for library in ("cpu", "cuda")}
