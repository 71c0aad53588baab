"""What fusing saves: bytes held for backward, over those of the plain network."""

import pytest
import torch

from fused_preact.bench.memory import peak_bytes, saved_bytes
from fused_preact.models import create_model, reference_model

slow = pytest.mark.slow


def images(model: torch.nn.Module, batch: int) -> torch.Tensor:
    size = model.architecture.image_size
    return torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)


def saved(model: torch.nn.Module, x: torch.Tensor) -> int:
    return saved_bytes(model.to(memory_format=torch.channels_last), lambda: model(x).sum())


@pytest.mark.parametrize(
    ("name", "memory", "batch", "limit"),
    [
        ("preact_resnet164", "layer", 4, 0.51),
        ("preact_resnet110", "layer", 4, 0.53),
        pytest.param("preact_resnet1001", "layer", 2, 0.51, marks=slow),
        pytest.param("preact_resnet1001", "unit", 2, 0.34, marks=slow),
        pytest.param("preact_resnet200", "layer", 1, 0.54, marks=slow),
    ],
)
def test_saved_bytes_over_eager(name, memory, batch, limit):
    fused, plain = create_model(name, memory=memory), reference_model(name)
    x = images(fused, batch)
    ratio = saved(fused, x) / saved(plain, x)
    assert limit - 0.03 < ratio <= limit


@slow
def test_segments_of_resnet1001_peak_under_a_twelfth():
    """Peak bytes of a whole step, parameters, gradients and the segment being recomputed included, over eager's saved bytes."""
    batch = 32
    fused = create_model("preact_resnet1001", memory="segment").to(memory_format=torch.channels_last)
    x = images(fused, batch)

    def step() -> None:
        for p in fused.parameters():
            p.grad = None
        fused(x).sum().backward()

    step()
    for p in fused.parameters():
        p.grad = None
    peak = peak_bytes(step, [*fused.parameters(), *fused.buffers(), x])
    eager = saved(reference_model("preact_resnet1001"), x[:2]) * batch / 2
    assert peak <= 0.08 * eager
