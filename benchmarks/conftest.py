"""Options of the benchmarks."""

import pytest
import torch


def pytest_addoption(parser):
    group = parser.getgroup("fused_preact benchmarks")
    group.addoption(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to measure (default: a GPU if there is one)"
    )
    group.addoption("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of activations and weights")
    group.addoption("--cifar-batch", type=int, help="images for layers of 32 pixels and less (default: 16, on a GPU 128)")
    group.addoption("--imagenet-batch", type=int, help="images for layers of ResNet-200 (default: 2, on a GPU 32)")
    group.addoption("--rounds", type=int, default=10, help="timed calls of each (default: 10)")


@pytest.fixture
def device(request):
    return torch.device(request.config.getoption("device"))


@pytest.fixture
def dtype(request):
    return getattr(torch, request.config.getoption("dtype"))


@pytest.fixture
def rounds(request):
    return request.config.getoption("rounds")


@pytest.fixture
def images(request, device):
    """Images a step, by network."""
    on_gpu = device.type == "cuda"
    cifar = request.config.getoption("cifar_batch") or (128 if on_gpu else 16)
    imagenet = request.config.getoption("imagenet_batch") or (32 if on_gpu else 2)
    return lambda network: imagenet if network == "preact_resnet200" else cifar
