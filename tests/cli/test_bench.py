import json
import os
import subprocess
import sys

import pytest
import torch

from fused_preact.backends import backend
from fused_preact.bench import agree, compare, variants
from fused_preact.cli import main

SMALL = ["bench", "--model", "preact_resnet20", "--batch-size", "2", "--rounds", "1", "--device", "cpu"]


NETWORKS = """
from torch import nn

def preact(num_classes):
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False)
    return nn.Sequential(*layers, nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

def without_norms():
    return nn.Conv2d(3, 8, 3)

def without_classes():
    return preact(10)[:4]

def no_network():
    return 3

def needs_more(depth, num_classes): ...

there_is_one = preact(10)
"""


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def networks(monkeypatch, tmp_path):
    """Writes the module `networks` to the current folder, and forgets afterwards that it was imported."""
    (tmp_path / "networks.py").write_text(NETWORKS)
    (tmp_path / "broken.py").write_text("import networks\n1 / 0")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield
    for name in ("networks", "broken"):
        sys.modules.pop(name, None)


def test_prints_a_table_and_writes_json_and_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main([*SMALL, "--json", "a.json", "--plot", "a.png"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("preact_resnet20: training step of 2 images of 32x32, float32, cpu, memory layer; median of 1 ")
    assert [line.split()[0] for line in out.splitlines()[-2:]] == ["fused", "eager"]
    report = json.loads((tmp_path / "a.json").read_text())
    assert set(report["variants"]) == {"fused", "eager"}
    assert report["config"]["batch_size"] == 2
    assert report["ratios"]["saved"]["eager"] < 0.6
    assert report["variants"]["fused"]["peak_bytes"] < report["variants"]["eager"]["peak_bytes"]
    assert sum(report["shares"].values()) == pytest.approx(1)
    assert (report["fma_peak_gflop_per_s"] is None) == isinstance(backend("cpu"), str)
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.png"}


@pytest.mark.parametrize("rate", [200.0, None])
def test_every_round_probes_the_peak_where_there_is_a_probe(rate, monkeypatch, tmp_path, capsys):
    calls = []
    monkeypatch.setattr(compare, "fma_probe", lambda device, dtype: rate and (lambda: calls.append(dtype) or rate + len(calls)))
    assert main([*SMALL, "--rounds", "3", "--json", "a.json"]) == 0
    report = json.loads((tmp_path / "a.json").read_text())
    fused, printed = report["variants"]["fused"], capsys.readouterr().out
    if rate is None:
        assert report["fma_peak_gflop_per_s"] is fused["of_fma_peak"] is None
        assert "FMA" not in printed
        return
    assert calls == [torch.float32] * 3
    assert report["fma_peak_gflop_per_s"] == {"median": 202.0, "q1": 201.5, "q3": 202.5}
    assert fused["of_fma_peak"] == pytest.approx(report["step_flops"] / (fused["step_ms"]["median"] * 1e-3) / 202e9)
    assert "202.0 GFLOP/s (201.5 .. 202.5)" in printed


def test_options_reach_the_comparison(capsys):
    options = ["--memory", "unit", "--dtype", "bfloat16", "--backend", "eager", "--image-size", "16", "--seed", "3", "--json", "a.json"]
    assert main([*SMALL, *options]) == 0
    assert "2 images of 16x16, bfloat16, cpu, memory unit, backend eager" in capsys.readouterr().out
    with open("a.json", encoding="utf-8") as file:
        report = json.load(file)
    config = report["config"]
    assert set(report["shares"]) == {"eager", "torch"}
    assert {"memory": "unit", "dtype": "bfloat16", "backend": "eager", "image_size": 16, "seed": 3}.items() <= config.items()


@pytest.mark.parametrize("image_size", [32, 12])
def test_any_network_is_compared_with_itself_fused(networks, image_size, capsys):
    options = ["--batch-size", "2", "--rounds", "1", "--device", "cpu", "--json", "a.json"]
    options += [] if image_size == 32 else ["--image-size", str(image_size)]
    assert main(["bench", "--module", "networks:preact", *options]) == 0
    assert capsys.readouterr().out.startswith(f"networks:preact: training step of 2 images of {image_size}x{image_size}, float32, cpu")
    with open("a.json", encoding="utf-8") as file:
        report = json.load(file)
    # What they save alike: images, results of both convolutions, statistics and masks. Eager keeps the activation too.
    side = image_size - 2
    saved = {name: variant["saved_bytes"] for name, variant in report["variants"].items()}
    assert saved["eager"] - saved["fused"] == pytest.approx(4 * 2 * 8 * side**2, abs=200)
    assert report["step_flops"] == 2 * 2 * (2 * side**2 * 8 * 27 + 3 * (side - 2) ** 2 * 8 * 72 + 3 * 80)


@pytest.mark.parametrize(
    ("module", "options", "sentence"),
    [
        ("networks", [], "module: expected PACKAGE.MODULE:FACTORY, got 'networks'"),
        (
            "nowhere:net",
            [],
            "module: expected a module that can be imported, got 'nowhere': ModuleNotFoundError: No module named 'nowhere'",
        ),
        ("broken:net", [], "module: expected a module that can be imported, got 'broken': ZeroDivisionError: division by zero"),
        ("networks:preakt", [], "module: networks has no 'preakt'; did you mean 'preact'?"),
        (
            "networks:__name__",
            [],
            "module: expected a function or class that makes a network, got 'networks:__name__', a value of type str",
        ),
        (
            "networks:there_is_one",
            [],
            "module: expected a function or class that makes a network, got 'networks:there_is_one', a value of type Seq",
        ),
        (
            "networks:needs_more",
            [],
            "module: expected a factory that needs no arguments but num_classes, got 'networks:needs_more', which needs",
        ),
        (
            "networks:no_network",
            [],
            "module: expected a factory of an nn.Module, got 'networks:no_network', which returns a value of type int",
        ),
        (
            "networks:without_norms",
            [],
            "module: expected a network with something to fuse, got 'networks:without_norms'; fused_preact.fuse: Con",
        ),
        (
            "networks:without_classes",
            [],
            "module: expected a network that returns (images, classes), got 'networks:without_classes', which returns a tensor of shape",
        ),
        (
            "networks:preact",
            ["--image-size", "2"],
            "module: 'networks:preact' can't be trained on 2 images of 3x2x2: Calculated padded input",
        ),
        ("networks:preact", ["--memory", "unit"], "memory: expected layer with --module, got 'unit'"),
        ("networks:preact", ["--model", "preact_resnet20"], "model: not allowed with argument --module"),
    ],
    ids=lambda value: "-".join(value).replace("--", "") if isinstance(value, list) else value.partition(",")[0].replace(" ", "_"),
)
def test_what_is_no_network_is_one_sentence(networks, module, options, sentence, capsys):
    assert main(["bench", "--module", module, "--batch-size", "2", "--device", "cpu", *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"fused-preact: argument --{sentence}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("network", [["--model", "preact_resnet20"], ["--module", "networks:preact"]], ids=["model", "module"])
def test_data_are_timed_beside_an_eager_step(networks, network, tmp_path, capsys):
    options = ["--batch-size", "4", "--rounds", "3", "--device", "cpu", "--threads", "1", "--seed", "5", "--json", "a.json"]
    assert main(["bench", "--data", *network, *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{network[1]}: eager training step of 4 images of 32x32, float32, cpu; median of 3 interleaved rounds\n")
    assert [line.split()[0] for line in out.splitlines()[-2:]] == ["step", "batch"]
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["machine"]["threads"] == 1
    assert {"model": network[1], "batch_size": 4, "seed": 5, "rounds": 3, "images": 50_000}.items() <= report["config"].items()
    assert report["share"] == report["batch_ms"]["median"] / report["step_ms"]["median"]


def test_threads_are_set_for_the_comparison_only(monkeypatch):
    seen = []
    monkeypatch.setattr(compare, "check", lambda *args: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    assert main([*SMALL, "--threads", "3"]) == 0
    assert seen == [3]
    assert torch.get_num_threads() == before


def test_a_wrong_variant_is_not_timed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(agree, "limits", lambda eager: agree.Errors(0.0, 0.0, 0.0))
    monkeypatch.setattr(compare, "interleaved", lambda *args, **kwargs: pytest.fail("was timed"))
    (tmp_path / "a.json").write_text("old")
    assert main([*SMALL, "--json", "a.json"]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("fused-preact: fused does not agree with eager PyTorch: ")
    assert captured.out == ""
    assert (tmp_path / "a.json").read_text() == "old"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "preact_resnet21"], "argument --model: unknown model 'preact_resnet21'; did you mean 'preact_resnet2"),
        (["--batch-size", "0"], "argument --batch-size: expected a whole number from 1 to 1000000, got 0"),
        (["--batch-size", "1", "--image-size", "4"], "argument --batch-size: expected at least 2 images"),
        (["--image-size", "big"], "argument --image-size: expected a whole number from 1 to 16384, got 'big'"),
        (["--device", "gpu"], "argument --device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["--dtype", "float64"], "argument --dtype: unknown dtype 'float64'; did you mean 'float"),
        (["--dtype", "float16"], "argument --dtype: expected float32 or bfloat16 on the cpu, got 'float16'"),
        (["--backend", "triten"], "argument --backend: unknown backend 'triten'; did you mean 'triton'?"),
        (["--memory", "none"], "argument --memory: unknown memory mode 'none'"),
        (["--against", "eager,compiled"], "argument --against: unknown variant 'compiled'; did you mean 'compile'?"),
        (["--against", ""], "argument --against: unknown variant ''"),
        (["--rounds", "0"], "argument --rounds: expected a whole number of at least 1, got 0"),
        (["--threads", "0"], "argument --threads: expected a whole number from 1 to"),
        (["--data", "--against", "compile"], "argument --against: expected none with --data, which times"),
        (["--data", "--backend", "eager"], "argument --backend: expected none with --data, which times"),
        (["--data", "--memory", "unit"], "argument --memory: expected none with --data, which times"),
        (["--data", "--compile-whole"], "argument --compile-whole: expected none with --data, which times"),
        (["--data", "--plot", "a.png"], "argument --plot: expected none with --data, which times"),
        (["--data", "--image-size", "16"], "argument --data: expected a network and images of 32x32, got 16x16"),
        (["--data", "--model", "preact_resnet18"], "argument --data: expected a network and images of 32x32, got 224x224"),
        (["--data", "--batch-size", "50001"], "argument --batch-size: expected at most 50000 images with --data, got 50001"),
        (["--json", "nowhere/a.json"], "argument --json: expected a file in an existing folder, got 'nowhere/a.json'"),
        (["--json", "."], "argument --json: expected a file, got the folder '.'"),
        (["--plot", "a.pdf"], "argument --plot: expected a file name that ends in .png, got 'a.pdf'"),
    ],
    ids=lambda value: "-".join(value).replace("--", "").replace("/", "_") if isinstance(value, list) else "",
)
def test_the_impossible_is_one_sentence(arguments, sentence, capsys, tmp_path):
    assert main([*SMALL, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"fused-preact: {sentence}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


def test_compile_without_a_compiler_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main([*SMALL, "--against", "compile"]) == 2
    assert capsys.readouterr().err == (
        "fused-preact: argument --against: torch.compile needs a C++ compiler, and there is no 'no-such-compiler' on PATH; "
        "CXX can name another\n"
    )


@pytest.mark.compile
def test_a_compiler_that_does_not_work_is_one_sentence(tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    # In a process of its own, because torch remembers what it learned about the compiler.
    surroundings = {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "fused_preact", *SMALL, "--against", "compile"]
    done = subprocess.run(command, env=os.environ | surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("fused-preact: torch.compile failed on this machine: ")
    assert "Traceback" not in done.stderr


def test_an_unusable_backend_says_why(monkeypatch, capsys):
    monkeypatch.setattr("fused_preact.backends.backend", lambda name: "it is on holiday")
    assert main([*SMALL, "--backend", "cpu"]) == 2
    assert capsys.readouterr().err == "fused-preact: argument --backend: backend 'cpu' is not usable: it is on holiday\n"


def test_plot_without_matplotlib_is_refused_before_any_work(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*SMALL, "--plot", "a.png"]) == 2
    assert capsys.readouterr().err.startswith("fused-preact: argument --plot: plotting needs matplotlib")


@pytest.mark.compile
@pytest.mark.slow
def test_compile_is_compiled_by_unit(capsys):
    assert main([*SMALL, "--against", "eager,compile", "--json", "a.json"]) == 0
    with open("a.json", encoding="utf-8") as file:
        ratios = json.load(file)["ratios"]
    assert set(ratios["step"]) == {"eager", "compile"}


@pytest.mark.compile
def test_every_unit_and_nothing_else_is_compiled():
    config = variants.Config("preact_resnet20", 2)
    model = variants.build("compile", config, variants.common_weights(config)).model
    compiled = [module for module in model.modules() if module._compiled_call_impl is not None]
    assert compiled == model.units()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_on_a_gpu(dtype, capsys):
    assert main([*SMALL, "--device", "cuda", "--dtype", dtype, "--json", "a.json"]) == 0
    with open("a.json", encoding="utf-8") as file:
        report = json.load(file)
    assert report["machine"]["gpu"]
    assert report["fma_peak_gflop_per_s"] is report["shares"] is report["variants"]["fused"]["of_fma_peak"] is None
    assert report["ratios"]["saved"]["eager"] < 0.6


def test_too_much_memory_is_a_sentence(monkeypatch, capsys):
    def allocate(*args, **options):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte.")

    monkeypatch.setattr("fused_preact.cli.bench.compare", allocate)
    assert main(["bench", "--model", "preact_resnet20"]) == 1
    assert capsys.readouterr().err.startswith("fused-preact: there is not enough memory for this; a smaller --batch-size")


def test_other_errors_are_not_hidden(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("a defect")

    monkeypatch.setattr("fused_preact.cli.bench.compare", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["bench", "--model", "preact_resnet20"])


@pytest.mark.parametrize("device", ["cpu:0", "cpu:7", "gpu", "meta"])
def test_devices_that_are_none(device, capsys):
    assert main(["bench", "--device", device]) == 2
    assert f"expected auto, cpu, cuda or cuda:N, got {device!r}" in capsys.readouterr().err
