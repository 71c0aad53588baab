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


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with the sdist and the wheel built from it."""
    tmp = tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tmp / "source", ignore=ignored)
    check(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp / "dist", tmp / "source")
    return tmp / "dist"


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """The folder of programs of a fresh environment with the wheel, which borrows torch from this one."""
    tmp = tmp_path_factory.mktemp("venv")
    venv.create(tmp, symlinks=True)
    paths = sysconfig.get_paths("venv", vars={"base": str(tmp), "platbase": str(tmp)})
    borrowed = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    (Path(paths["purelib"]) / "borrowed.pth").write_text("\n".join(dict.fromkeys(borrowed)))
    python = Path(paths["scripts"]) / "python"
    (wheel,) = dist.glob("*.whl")
    check(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--ignore-installed", wheel)
    return python.parent


def run(command, *arguments, cwd):
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return check(command, *arguments, cwd=cwd, env=env)


@pytest.mark.slow
def test_the_sdist_has_all_that_a_build_and_the_tests_need(dist):
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {"LICENSE", "README.md", "Makefile", "constraints.txt", "csrc/README.md", "fused_preact/py.typed", "tests/test_packaging.py"}
    assert wanted <= names


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
