"""A captured step is the same step. Every test runs on a GPU if there is one, and everywhere on an emulated CUDA graph."""

import contextlib
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fused_preact as fp
from fused_preact import data
from fused_preact.train import trainer as training
from fused_preact.train.config import TrainConfig
from fused_preact.train.graph import CapturedStep
from fused_preact.train.loop import fit
from fused_preact.train.meter import DivergedError
from fused_preact.train.trainer import Trainer

WARMUP = 3


class EmulatedGraph(TorchDispatchMode):
    """A CUDA graph of CPU operators: inside nothing takes effect and nothing can be read back; a replay runs it at the same addresses."""

    def __init__(self):
        super().__init__()
        self.calls, self.before = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        arguments = func._schema.arguments
        values = [*zip(arguments, args, strict=False), *((a, kwargs[a.name]) for a in arguments if a.name in kwargs)]
        written = [value for argument, value in values if argument.is_write]
        self.before += [(t, t.detach().clone()) for t in tree_leaves(written) if isinstance(t, torch.Tensor)]
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out

    def __exit__(self, *error):
        super().__exit__(*error)
        with torch.no_grad():
            for tensor, value in reversed(self.before):
                tensor.copy_(value)

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out in self.calls:
            for static, fresh in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(static, torch.Tensor) and static.data_ptr() != fresh.data_ptr():
                    static.copy_(fresh)


@pytest.fixture
def emulated(monkeypatch):
    """The order of what happens to streams, as text."""
    log = []

    class Stream(SimpleNamespace):
        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def on(stream):
        log.append(f"on {stream.name}")
        yield

    def capture(graph, stream):
        log.append(f"capture on {stream.name}")
        return graph

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(name="side", device=torch.device(device)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(name="current", device=device))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", EmulatedGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(TrainConfig, "captured", property(lambda config: config.cuda_graph))
    return log


on_a_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=on_a_gpu)])
def device(request, monkeypatch):
    if request.param == "emulated":
        request.getfixturevalue("emulated")
        return "cpu"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return "cuda"


@pytest.fixture
def config(device, tmp_path):
    return TrainConfig(out=tmp_path / "run", device=device, cuda_graph=True, epochs=5, lr=0.01, batch_size=32)


def trainer(config):
    torch.manual_seed(0)
    units = fp.PreActBottleneck(16, 4), fp.PreActBlock(16, 16)
    model = nn.Sequential(nn.Conv2d(3, 16, 4, 4, bias=False), *units, nn.Flatten(), nn.Linear(1024, 10))
    return Trainer(model.to(config.device, memory_format=torch.channels_last), config)


def batches(device, number):
    return list(data.synthetic(train=32 * number, test=10).to(device).train_batches(32, seed=0, epoch=0))


def losses(config, batches):
    learner = trainer(config)
    return torch.stack([learner.step(batch)[0].detach() for batch in batches])


def parameters(learner):
    return [p.detach().clone() for p in learner.model.parameters()]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


# The fused SGD rounds otherwise. On a CPU, noise of 1e-6 on every weight after every step moved these losses by 3e-5 in float32, and by
# 3e-3 in bfloat16, where it turns the rounding of casts; a learning rate that stays at its value of the capture moved them by 9e-2.
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-3), ("bfloat16", 2e-2)])
def test_losses_are_those_of_the_ungraphed_step(config, dtype, rtol):
    config, given = replace(config, dtype=dtype), batches(config.device, WARMUP + 5)
    torch.testing.assert_close(losses(config, given), losses(replace(config, cuda_graph=False), given), rtol=rtol, atol=0.0)


def test_the_learning_rate_acts_after_the_capture(config):
    learner, given = trainer(config), batches(config.device, WARMUP + 3)
    for batch in given[:-2]:
        learner.step(batch)
    assert learner._step.captured
    before = parameters(learner)
    learner.lr = 0.0
    learner.step(given[-2])
    assert same(before, parameters(learner))
    learner.lr = 0.5
    assert learner.lr == 0.5
    learner.step(given[-1])
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters(learner), strict=True))


def test_every_call_is_one_step(config):
    learner = trainer(config)
    for step, batch in enumerate(batches(config.device, WARMUP + 3), 1):
        learner.step(batch)
        counts = [b.item() for name, b in learner.model.named_buffers() if name.endswith("num_batches_tracked")]
        assert counts == [step] * 5
        assert learner._step.captured == (step > WARMUP)


def test_replays_use_their_own_batch_and_leave_results_alone(config):
    learner, (*warmup, a, b) = trainer(config), batches(config.device, WARMUP + 2)
    for batch in warmup:
        learner.step(batch)

    def replay(batch):
        learner.lr = 0.0
        return learner.step(batch)

    first, second = replay(a), replay(b)
    kept = [t.clone() for t in first]
    assert not torch.equal(first[0], second[0])
    again = replay(a)
    assert same(first, kept)
    assert same(first, again)
    assert not any(t.requires_grad for t in again)


@pytest.mark.parametrize("steps", [0, WARMUP + 1], ids=["first", "captured"])
def test_an_overflow_skips_the_step_and_lowers_the_scale(config, steps):
    learner, given = trainer(replace(config, dtype="float16")), batches(config.device, steps + 2)
    for batch in given[:steps]:
        learner.step(batch)
    learner.scaler.scale(torch.ones((), device=config.device))  # makes the scale
    learner.scaler.update(2.0**60)
    before = parameters(learner)
    loss, _ = learner.step(given[-2])
    assert loss.isfinite()
    assert same(before, parameters(learner))
    assert learner.scaler.get_scale() == 2.0**59
    assert all(state["momentum_buffer"].isfinite().all() for state in learner.optimizer.state.values())
    assert steps or not any(state["momentum_buffer"].any() for state in learner.optimizer.state.values())
    learner.scaler.update(2.0**10)
    learner.step(given[-1])
    assert not same(before, parameters(learner))
    assert all(p.isfinite().all() for p in learner.model.parameters())
    assert learner.scaler.get_scale() == 2.0**10


@pytest.mark.parametrize("memory", ["layer", "unit", "segment"])
def test_fit_captures(config, monkeypatch, memory):
    monkeypatch.setitem(data.DATASETS, "synthetic", partial(data.synthetic, train=130, test=40))
    steps = []
    monkeypatch.setattr(training, "CapturedStep", lambda *args: steps.append(CapturedStep(*args)) or steps[0])
    config = replace(config, model="preact_resnet20", data="synthetic", epochs=2, memory=memory)
    graphed = fit(config).history.epochs
    assert steps[0].captured
    ungraphed = fit(replace(config, cuda_graph=False, out=config.out.with_name("ungraphed"))).history.epochs
    assert [record.lr for record in graphed] == pytest.approx([record.lr for record in ungraphed])
    # The same noise moved these by 1e-5.
    assert [record.train_loss for record in graphed] == pytest.approx([record.train_loss for record in ungraphed], rel=1e-3)


def test_divergence_is_seen(config, monkeypatch):
    monkeypatch.setitem(data.DATASETS, "synthetic", partial(data.synthetic, train=200, test=10))
    with pytest.raises(DivergedError):
        fit(replace(config, model="preact_resnet20", data="synthetic", epochs=1, lr=1e20))


def test_any_step_can_be_captured(device):
    total, calls = torch.zeros(2, device=device), []

    def step(x):
        calls.append(x)
        return {"total": total.add_(x), "twice": (x * 2,)}

    captured = CapturedStep(step, device, warmup=1)
    results = [captured(torch.full((2,), float(i), device=device)) for i in range(1, 5)]
    assert [r["total"].tolist() for r in results] == [[1, 1], [3, 3], [6, 6], [10, 10]]
    assert [r["twice"][0].tolist() for r in results] == [[2, 2], [4, 4], [6, 6], [8, 8]]
    assert len(calls) == 2
    assert CapturedStep(lambda: None, device)() is None


def test_inputs_keep_their_memory_format_and_change_no_shape_or_dtype(device):
    x = torch.randn(2, 3, 4, 4, device=device).contiguous(memory_format=torch.channels_last)
    captured = CapturedStep(lambda x: x.is_contiguous(memory_format=torch.channels_last), device)
    assert captured(x)
    for other in [(x[:1],), (x.double(),), (x, x), ()]:
        with pytest.raises(ValueError, match=r"^a captured step takes tensors of the shapes and dtypes of its first call: expected \["):
            captured(*other)


def test_a_capture_needs_warm_up():
    with pytest.raises(ValueError, match=r"^expected a warmup of at least 1 call before the capture, got 0$"):
        CapturedStep(lambda: None, warmup=0)


def test_warm_up_and_capture_share_a_stream(emulated):
    captured = CapturedStep(lambda: None, "cpu", warmup=2)
    for _ in range(4):
        captured()
    assert emulated == ["side waits for current", "on side", "current waits for side"] * 2 + ["capture on side"]


def test_a_capture_that_fails_raises(emulated):
    x = torch.ones(2)
    captured = CapturedStep(lambda: x.sum().item(), "cpu", warmup=1)
    captured()
    with pytest.raises(RuntimeError, match="capturing"):
        captured()
    assert not captured.captured


@pytest.mark.parametrize("memory", ["layer", "unit", "segment"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_reads_nothing_back(tmp_path, memory, dtype):
    """The operators inside, which no emulated graph sees, can be captured too."""
    torch.manual_seed(0)
    model = fp.models.create_model("preact_resnet20", memory=memory).to(memory_format=torch.channels_last)
    learner, (batch,) = Trainer(model, TrainConfig(out=tmp_path, dtype=dtype)), batches("cpu", 1)
    with torch.profiler.profile() as profile:
        learner.step(batch)
    names = {event.name for event in profile.events()}
    assert "aten::conv2d" in names
    assert "aten::_local_scalar_dense" not in names


def test_on_a_cpu_the_flag_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(data.DATASETS, "synthetic", partial(data.synthetic, train=64, test=20))
    config = TrainConfig(out=tmp_path / "a", model="preact_resnet20", data="synthetic", epochs=1)
    runs = config, replace(config, cuda_graph=True, out=tmp_path / "b")
    without, with_flag = (load_file(fit(run).out / "model.safetensors") for run in runs)
    assert all(torch.equal(with_flag[key], without[key]) for key in without)
