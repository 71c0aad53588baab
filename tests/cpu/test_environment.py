"""The sentences with which the cpu backend says that it can't be used."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fused_preact.backends import native
from fused_preact.backends.cpu import environment

ROOT = Path(__file__).resolve().parents[2]
FAKE = SimpleNamespace(isas=lambda: ["scalar", "avx2"], isa=lambda: "avx2")


@pytest.fixture
def library(monkeypatch):
    """Pretend that another library is there, or that importing it raises."""
    monkeypatch.delenv(environment.FORCED, raising=False)

    def pretend(found: object) -> None:
        def own(name: str) -> object:
            assert name == "fused_preact._cpu"
            if isinstance(found, Exception):
                raise found
            return found

        for module in (environment, native):
            monkeypatch.setattr(module, "importlib", SimpleNamespace(import_module=own))

    return pretend


def test_usable(library):
    library(FAKE)
    assert environment.unavailable() is None
    assert environment.isa() == "avx2"


def test_missing(library, monkeypatch, tmp_path):
    library(ModuleNotFoundError("No module named 'fused_preact._cpu'"))
    monkeypatch.setattr(native, "PACKAGE", tmp_path)
    assert environment.unavailable() == "the native library is not built: it takes a C++ compiler when the package is installed"
    (tmp_path / "_cpu_missing.txt").write_text("ninja is not installed; pip install ninja\n")
    assert environment.unavailable() == "the native library is not built: ninja is not installed; pip install ninja"


def test_the_reason_is_looked_for_beside_the_library():
    assert native.PACKAGE == ROOT / "fused_preact"


def test_damaged(library):
    library(ImportError("libgomp.so.1: cannot open\n  shared object file"))
    assert environment.unavailable() == "the native library can't be loaded: ImportError: libgomp.so.1: cannot open shared object file"


def test_forced_to_an_instruction_set(library, monkeypatch):
    library(FAKE)
    for name, usable in (("", True), ("scalar", True), ("avx2", True), ("avx512", False), ("AVX2", False)):
        monkeypatch.setenv(environment.FORCED, name)
        assert (environment.unavailable() is None) == usable
    assert environment.unavailable() == (
        "FUSED_PREACT_CPU_ISA is 'AVX2', expected one of those that this library and this machine have: scalar, avx2"
    )


needs_library = pytest.mark.skipif(environment.unavailable() is not None, reason=f"cpu: {environment.unavailable()}")


def forced(monkeypatch, isa: str, program: str) -> str:
    """What `program` prints in a process of its own, told to run `isa`."""
    monkeypatch.setenv(environment.FORCED, isa)
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


@needs_library
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "avx512_bf16"])
def test_the_library_runs_what_it_is_told(monkeypatch, isa):
    from fused_preact import _cpu

    if isa not in _cpu.isas():
        pytest.skip(f"this machine can't run {isa}")
    assert forced(monkeypatch, isa, "from fused_preact.backends.cpu.environment import isa; print(isa())") == isa


@needs_library
def test_an_unknown_instruction_set_makes_the_backend_unusable_and_nothing_else(monkeypatch):
    program = "import fused_preact; found = fused_preact.available_backends(); print(found['cpu']); assert found['eager'] is None"
    assert forced(monkeypatch, "avx1024", program).startswith("FUSED_PREACT_CPU_ISA is 'avx1024', expected one of")


@needs_library
def test_another_instruction_set_can_be_set(monkeypatch):
    from fused_preact import _cpu

    before = _cpu.isa()
    for isa in _cpu.isas():
        _cpu.set_isa(isa)
        assert _cpu.isa() == isa
    with pytest.raises(ValueError, match="can't run instruction set 'avx1024', expected one of scalar"):
        _cpu.set_isa("avx1024")
    _cpu.set_isa(before)
