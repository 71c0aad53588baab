"""Fused networks against unfused ones: results, every gradient, running statistics."""

import copy

import pytest
import torch
from torch import Tensor, nn

import fused_preact as fp
from tests.convert.networks import NETWORKS, Network
from tests.testing.cases import BACKENDS, device_of
from tests.testing.numerics import assert_as_accurate

networks = pytest.mark.parametrize("network", NETWORKS, ids=[network.id for network in NETWORKS])
FORMATS = {"nhwc": torch.channels_last, "nchw": torch.contiguous_format}


def built(network: Network) -> nn.Module:
    """The network with norms that are not the identity."""
    torch.manual_seed(7)
    model = network.make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def images(fmt: torch.memory_format = torch.channels_last, batch: int = 3) -> Tensor:
    return torch.randn(batch, 8, 8, 8, generator=torch.Generator().manual_seed(3)).contiguous(memory_format=fmt)


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Results, gradients of everything and buffers after one step."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = model(x)
    generator = torch.Generator().manual_seed(5)
    dy = torch.randn(y.shape, dtype=torch.float64, generator=generator).to(y.dtype).to(y.device)
    y.backward(dy)
    found = {"y": y.detach(), "x.grad": x.grad}
    found |= {f"{name}.grad": p.grad for name, p in model.named_parameters()}
    return found | {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


def assert_same(fused: dict[str, Tensor], eager: dict[str, Tensor], truth: dict[str, Tensor], kinds: tuple[str, ...]) -> None:
    assert fused.keys() == eager.keys() == truth.keys()
    for name, value in fused.items():
        if value is not None and not value.is_floating_point():
            assert torch.equal(value, eager[name]), name
        else:
            own = [None if t is None else t.cpu() for t in (value, eager[name], truth[name])]
            assert_as_accurate(name, *own, kinds=kinds)


@networks
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_as_accurate_as_unfused(network, training, fmt):
    model = built(network).train(training)
    x = images(FORMATS[fmt])
    fused = fp.fuse(model)
    truth = step(copy.deepcopy(model).double(), x.double())
    # One pre-activation that falls on the other side of zero changes single elements: RMS counts.
    assert_same(step(fused, x), step(model, x), truth, ("RMS",))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("network", [n for n in NETWORKS if n.id in ("bottleneck", "wide", "dense")], ids=lambda n: n.id)
def test_on_every_backend(network, backend):
    device = device_of(backend)
    model = built(network).to(device)
    x = images(batch=2).to(device)
    fused = fp.fuse(model)
    with fp.use_backend(backend):
        got = step(fused, x)
    assert_same(got, step(model, x), step(copy.deepcopy(model).double(), x.double()), ("RMS",))


@networks
def test_counts(network):
    found = fp.explain(built(network), images())
    assert (found.triples, found.shared, found.units) == (network.triples, network.shared, network.units), str(found)


@networks
def test_without_gradients(network):
    model = built(network).eval()
    fused = fp.fuse(model)
    with torch.no_grad():
        torch.testing.assert_close(fused(images()), model(images()))
    with torch.inference_mode():
        torch.testing.assert_close(fused(images()) + 0, model(images()))


@networks
def test_second_step_is_like_the_first(network):
    """Nothing of the first call is left in the second: same bits from the same state."""
    fused = fp.fuse(built(network))
    again = copy.deepcopy(fused)
    step(fused, images(batch=2))
    fused.load_state_dict(again.state_dict())
    for p in fused.parameters():
        p.grad = None
    first, second = step(again, images()), step(fused, images())
    assert all(torch.equal(first[name], value) for name, value in second.items() if value is not None)


def test_saves_one_activation_a_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *(built(NETWORKS[1])[0] for _ in range(4))).to(memory_format=torch.channels_last)

    def saved(net: nn.Module) -> int:
        seen: dict[int, int] = {}
        # Not by hooks on saved tensors: under them nothing is deferred.
        stack, nodes = [net(torch.randn(4, 3, 16, 16)).grad_fn], set()
        while stack:
            node = stack.pop()
            if node is None or node in nodes:
                continue
            nodes.add(node)
            tensors = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")] + list(getattr(node, "saved_tensors", ()))
            seen.update((t.data_ptr(), t.nbytes) for t in tensors if isinstance(t, Tensor) and t.dim() == 4 and t.size(0) == 4)
            stack += [other for other, _ in node.next_functions]
        return sum(seen.values())

    # The stem saves its input in both.
    stem = 4 * 3 * 16 * 16 * 4
    assert saved(fp.fuse(model)) - stem <= 0.55 * (saved(model) - stem)
