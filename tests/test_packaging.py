import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

COMPILER = os.environ.get("CXX") or any(map(shutil.which, ("c++", "g++", "clang++")))


def check(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_importing_needs_torch_and_nothing_else():
    extras = "sklearn", "scipy", "tqdm", "safetensors", "matplotlib", "triton", "pybind11"
    program = f"import sys; sys.modules.update(dict.fromkeys({extras})); import fused_preact, fused_preact.cli, fused_preact.train.loop"
    check(sys.executable, "-c", program)


def test_constraints_name_one_version_of_each_package():
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = [line.split("==") for line in lines if line]
    assert all(len(pin) == 2 for pin in pins)
    versions = dict(pins)
    assert len(versions) == len(pins)
    assert versions["torch"] == "2.13.0"
    assert versions["triton"] == "3.7.1"


def build_in_place(tmp_path, **env):
    """What setup.py does in a copy of the sources with the variables of `env`."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "fused_preact").mkdir()
    (tmp_path / "fused_preact/__init__.py").write_text('__version__ = "0"')
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=tmp_path, env=os.environ | env, capture_output=True, text=True)


def test_a_build_without_a_compiler_succeeds_and_leaves_the_reason(tmp_path):
    done = build_in_place(tmp_path, CXX="no-such-compiler -O2", FUSED_PREACT_REQUIRE_NATIVE="")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fused_preact/_cpu_missing.txt").read_text() == "there is no C++ compiler (no-such-compiler -O2)\n"
    assert "left out: there is no C++ compiler (no-such-compiler -O2)" in done.stderr


def test_sources_that_do_not_compile_leave_the_reason(tmp_path):
    done = build_in_place(tmp_path, CXX="false", FUSED_PREACT_REQUIRE_NATIVE="", FUSED_PREACT_CUDA_ARCHS="none")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fused_preact/_cpu_missing.txt").read_text().startswith("csrc/cpu did not compile")


def fake_nvcc(folder, version):
    """A program that calls itself nvcc, knows sm_80 and sm_90, and comes before the real one."""
    program = folder / "nvcc"
    folder.mkdir()
    program.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.1'\necho compute_80 compute_90\n")
    program.chmod(0o755)
    return os.pathsep.join([str(folder), os.environ["PATH"]])


WITHOUT_CUDA = {
    "none": ({"FUSED_PREACT_CUDA_ARCHS": "none"}, None, "FUSED_PREACT_CUDA_ARCHS was none"),
    "missing": ({"CUDA_HOME": "/nowhere"}, None, "there is no nvcc in /nowhere/bin"),
    "old": ({}, "11.8", "nvcc 11.8 is too old, expected 12.0 or newer"),
    "unknown": ({"FUSED_PREACT_CUDA_ARCHS": "9.0 12.0+PTX"}, "12.4", "FUSED_PREACT_CUDA_ARCHS has 12.0+PTX, which this nvcc does not know"),
    "nonsense": (
        {"FUSED_PREACT_CUDA_ARCHS": "sm_90"},
        "12.4",
        "FUSED_PREACT_CUDA_ARCHS has 'sm_90', expected compute capabilities from 8.0 on, such as 9.0 or 9.0+PTX",
    ),
    "before-8.0": (
        {"FUSED_PREACT_CUDA_ARCHS": "7.5;9.0"},
        "12.4",
        "FUSED_PREACT_CUDA_ARCHS has '7.5', expected compute capabilities from 8.0 on, such as 9.0 or 9.0+PTX",
    ),
}


@pytest.mark.parametrize(("env", "version", "reason"), WITHOUT_CUDA.values(), ids=WITHOUT_CUDA)
def test_a_build_without_cuda_leaves_the_reason(env, version, reason, tmp_path):
    if version is not None:
        env = env | {"PATH": fake_nvcc(tmp_path / "bin", version), "CUDA_HOME": ""}
    done = build_in_place(tmp_path, CXX="no-such-compiler", FUSED_PREACT_REQUIRE_NATIVE="", **env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fused_preact/_cuda_missing.txt").read_text() == f"{reason}\n"


def test_a_build_that_is_required_fails(tmp_path):
    done = build_in_place(tmp_path, CXX="no-such-compiler", FUSED_PREACT_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert "error: there is no C++ compiler (no-such-compiler)" in done.stderr


def test_the_library_is_not_built_for_the_machine_that_builds_it():
    for name in ("setup.py", "Makefile"):
        text = (ROOT / name).read_text()
        assert "-march" not in text
        assert "-mtune" not in text


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with the sdist and the wheel built from it."""
    tmp = tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tmp / "source", ignore=ignored)
    env = os.environ | {"FUSED_PREACT_REQUIRE_NATIVE": "1" if COMPILER else "", "FUSED_PREACT_CUDA_ARCHS": "8.0"}
    check(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp / "dist", tmp / "source", env=env)
    return tmp / "dist"


def environment(tmp, *requirement, **env):
    """The folder of programs of a fresh environment with the package, which borrows torch and what builds need from this one."""
    venv.create(tmp, symlinks=True)
    paths = sysconfig.get_paths("venv", vars={"base": str(tmp), "platbase": str(tmp)})
    borrowed = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    (Path(paths["purelib"]) / "borrowed.pth").write_text("\n".join(dict.fromkeys(borrowed)))
    python = Path(paths["scripts"]) / "python"
    alone = ["--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed"]
    check(sys.executable, "-m", "pip", "--python", python, "install", *alone, *requirement, env=os.environ | env)
    return python.parent


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    (wheel,) = dist.glob("*.whl")
    return environment(tmp_path_factory.mktemp("venv"), wheel)


def run(command, *arguments, cwd):
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return check(command, *arguments, cwd=cwd, env=env)


@pytest.mark.slow
def test_the_sdist_has_all_that_a_build_and_the_tests_need(dist):
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {"LICENSE", "README.md", "Makefile", "constraints.txt", "fused_preact/py.typed", "tests/test_packaging.py"}
    assert wanted <= names
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()} <= names
    assert not any("_cpu" in Path(name).name and name.startswith("fused_preact/") for name in names)


@pytest.mark.slow
def test_the_wheel_has_the_package_and_nothing_beside_it(dist):
    (archive,) = dist.glob("*.whl")
    names = zipfile.ZipFile(archive).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"fused_preact"}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "fused_preact").rglob("*.py")}
    assert modules | {"fused_preact/py.typed"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_wheel_runs_outside_the_repository(installed, tmp_path):
    where = Path(run(installed / "python", "-c", "import fused_preact; print(fused_preact.__file__)", cwd=tmp_path).strip())
    assert installed.parent in where.parents
    assert "torch" in run(installed / "fused-preact", "env", cwd=tmp_path)
    small = ["--model", "preact_resnet20", "--data", "synthetic", "--epochs", "1", "--threads", "1", "--out", "here"]
    assert "test accuracy" in run(installed / "python", "-m", "fused_preact", "train", *small, cwd=tmp_path)
    assert (tmp_path / "here/model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER, reason="there is no C++ compiler")
def test_the_wheel_has_the_native_library(dist, installed, tmp_path):
    (archive,) = dist.glob("*.whl")
    names = zipfile.ZipFile(archive).namelist()
    assert f"fused_preact/_cpu{sysconfig.get_config_var('EXT_SUFFIX')}" in names
    assert "fused_preact/_cpu_missing.txt" not in names
    program = "import torch, fused_preact._cpu as library; print(library.__file__, library.isas())"
    where, _, isas = run(installed / "python", "-c", program, cwd=tmp_path).partition(" ")
    assert installed.parent in Path(where).parents
    assert "'scalar'" in isas


@pytest.mark.slow
def test_without_a_compiler_the_install_succeeds_and_env_says_why(dist, tmp_path):
    (sdist,) = dist.glob("*.tar.gz")
    programs = environment(tmp_path / "venv", sdist, CXX="no-such-compiler", FUSED_PREACT_REQUIRE_NATIVE="")
    found = run(programs / "fused-preact", "env", cwd=tmp_path)
    assert "not usable: the native library is not built: there is no C++ compiler (no-such-compiler)\n" in found
    assert ["on", "cpu", "eager"] in [line.split() for line in found.splitlines()]
