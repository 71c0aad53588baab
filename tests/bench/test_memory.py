"""Bytes counted by hand."""

import weakref

import pytest
import torch
from torch import nn

from fused_preact.bench.memory import peak_bytes, saved_bytes
from fused_preact.bench.variants import Config, batch, build, common_weights

FLOAT = 4


class Keep(torch.autograd.Function):
    """Saves a tensor of its own that is twice as large as its input."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(torch.cat([x, x]))
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_a_storage_saved_twice_counts_once():
    x = torch.randn(100, requires_grad=True)
    # relu saves its result, and pow saves the same tensor as its input.
    assert saved_bytes(nn.Identity(), lambda: torch.relu(x).pow(3).sum()) == 100 * FLOAT


def test_a_view_counts_as_its_whole_storage():
    x = torch.randn(100, requires_grad=True)
    assert saved_bytes(nn.Identity(), lambda: torch.exp(x * 2)[:10].pow(3).sum()) == 100 * FLOAT


def test_parameters_do_not_count_and_inputs_do():
    model, x = nn.Linear(10, 5), torch.randn(3, 10, requires_grad=True)
    assert saved_bytes(model, lambda: model(x).sum()) == 3 * 10 * FLOAT
    assert saved_bytes(nn.Identity(), lambda: model(x).sum()) == (3 * 10 + 5 * 10) * FLOAT


def test_buffers_do_not_count():
    model, x = nn.BatchNorm1d(8).eval(), torch.randn(4, 8, requires_grad=True)
    assert saved_bytes(model, lambda: model(x).sum()) == 4 * 8 * FLOAT


def test_sees_what_a_custom_function_saves():
    x = torch.randn(100, requires_grad=True)
    assert saved_bytes(nn.Identity(), lambda: Keep.apply(x).sum()) == 200 * FLOAT


def test_a_graph_dropped_in_forward_does_not_count():
    x = torch.randn(100, requires_grad=True)

    def forward():
        x.exp().exp().sum().item()
        return x.exp().sum()

    assert saved_bytes(nn.Identity(), forward) == 100 * FLOAT


def test_measuring_leaves_nothing_behind():
    x = torch.randn(100, requires_grad=True)
    results = []

    def forward():
        result = x.exp()
        results.append(weakref.ref(result))
        return result.sum()

    saved_bytes(nn.Identity(), forward)
    assert results[0]() is None


def test_batch_norm_relu_conv_saves_two_activations_in_eager():
    model = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1, bias=False))
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    statistics = 2 * 8 * FLOAT
    assert saved_bytes(model, lambda: model(x).sum()) == 2 * x.nbytes + statistics


def allocate(device="cpu"):
    """256 and 128 KiB, then 128 and 192."""
    a = torch.empty(256 * 1024, dtype=torch.uint8, device=device)
    b = torch.empty(128 * 1024, dtype=torch.uint8, device=device)
    del a
    c = torch.empty(192 * 1024, dtype=torch.uint8, device=device)
    del b, c


def test_peak_is_the_highest_sum_and_not_the_sum_of_all():
    assert peak_bytes(allocate, []) == 384 * 1024


def test_peak_includes_what_was_live_before_once():
    x = torch.zeros(1000)
    assert peak_bytes(allocate, [x, x.view(10, 100)]) == 384 * 1024 + 1000 * FLOAT


def test_peak_of_operators():
    x = torch.zeros(1000)

    def step():
        y = x.exp()
        z = y.exp()
        del y
        z.exp()

    assert peak_bytes(step, [x]) == 3 * 1000 * FLOAT


def test_earlier_memory_that_is_freed_in_the_step_does_not_lower_the_peak():
    earlier = [torch.empty(10_000)]

    def step():
        earlier.clear()
        allocate()

    assert peak_bytes(step, []) == 384 * 1024


def test_peak_sees_what_backward_holds():
    x = torch.zeros(100_000, requires_grad=True)

    def step():
        y = x.exp().exp().exp()
        y.backward(torch.ones_like(y))
        x.grad = None

    # Highest in the second of three nodes: x, three results, the ones, the gradient that comes in and the one that goes out.
    assert peak_bytes(step, [x]) == pytest.approx(x.nbytes * 7, abs=64)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_on_a_gpu():
    other = torch.empty(1 << 20, device="cuda")
    live = torch.zeros(1024, device="cuda")
    assert peak_bytes(lambda: allocate("cuda"), [live], "cuda") == 384 * 1024 + 1024 * FLOAT
    del other


@pytest.mark.parametrize(("name", "low", "high"), [("eager", 0.99, 1.01), ("fused", 0.50, 0.54)])
def test_saved_bytes_of_a_whole_network(name, low, high):
    config = Config("preact_resnet20", batch_size=4)
    variant = build(name, config, common_weights(config))
    images, labels = batch(config)
    # Each of the 19 BN layers has an input, and in eager a second tensor as large behind the ReLU; images and small change.
    inputs = FLOAT * 4 * (7 * 16 * 32**2 + 6 * 32 * 16**2 + 6 * 64 * 8**2)
    ratio = (saved_bytes(variant.model, lambda: variant.forward(images, labels)) - images.nbytes) / (2 * inputs)
    assert low <= ratio <= high
