import json

import pytest
import torch

from fused_preact.cli import env, main


def test_names_versions_devices_and_backends(capsys):
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__ in out
    for name in ("cuda", "triton", "cpu", "eager", "numpy", "torch.compile"):
        assert f"  {name} " in out or f"\n{name}\n" in out


def test_a_missing_backend_comes_with_its_reason(monkeypatch, capsys):
    monkeypatch.setattr(env, "available_backends", lambda: {"cuda": "no nvcc", "triton": None, "cpu": "no compiler", "eager": None})
    assert main(["env"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["cuda", "not usable: no nvcc"] in lines
    assert ["eager", "usable"] in lines


def test_json_says_the_same(monkeypatch, capsys):
    monkeypatch.setattr(env, "available_backends", lambda: {"cuda": "no nvcc", "triton": None, "cpu": "no compiler", "eager": None})
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"versions", "system", "devices", "backends", "instruction_set", "cuda_library", "default_backend", "compile"}
    assert found["backends"]["cuda"] == "no nvcc"
    assert found["default_backend"]["cpu"] == "eager"
    assert found["instruction_set"] is None
    assert found["versions"]["torch"] == torch.__version__


def test_the_default_is_the_first_usable_backend(monkeypatch):
    monkeypatch.setattr(env, "available_backends", lambda: {"cuda": None, "triton": None, "cpu": None, "eager": None})
    monkeypatch.setattr(env, "isa", lambda: "avx2")
    monkeypatch.setattr(env, "runs", lambda: "with code for 9.0")
    assert env.environment()["default_backend"]["cpu"] == "cpu"


def test_the_cuda_backend_comes_with_what_it_runs_on(monkeypatch, capsys):
    monkeypatch.setattr(env, "available_backends", lambda: {"cuda": None, "triton": None, "cpu": "no compiler", "eager": None})
    monkeypatch.setattr(env, "runs", lambda: "with code for 9.0")
    assert main(["env"]) == 0
    assert ["cuda", "usable, with code for 9.0"] in [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]


def test_the_cpu_backend_comes_with_its_instruction_set(monkeypatch, capsys):
    monkeypatch.setattr(env, "available_backends", lambda: {"cuda": "no nvcc", "triton": None, "cpu": None, "eager": None})
    monkeypatch.setattr(env, "isa", lambda: "avx2")
    assert main(["env"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["cpu", "usable, with avx2"] in lines
    assert ["eager", "usable"] in lines
    assert env.environment()["instruction_set"] == "avx2"


def test_a_package_that_is_missing_has_no_version(monkeypatch, capsys):
    monkeypatch.setattr(env, "PACKAGES", ("no-such-package",))
    assert main(["env"]) == 0
    assert ["no-such-package", "-"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_unknown_options_are_refused(capsys):
    assert main(["env", "--yaml"]) == 2
    assert capsys.readouterr().err == "fused-preact: unrecognized arguments: --yaml\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_the_cpu_is_listed():
    assert list(env.environment()["devices"]) == ["cpu"]
