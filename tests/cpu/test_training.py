"""Training on the cpu backend is training on the eager one."""

import copy

import pytest
import torch

import fused_preact as fp

_cpu = pytest.importorskip("fused_preact._cpu")


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def trained(model, backend, batches):
    """Losses, gradients of the last step, parameters and buffers after SGD on the batches."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    losses = []
    with fp.use_backend(backend):
        for x, target in batches:
            optimizer.zero_grad()
            loss = (model(x) - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return {"losses": torch.stack(losses), **{f"gradient of {n}": p.grad for n, p in model.named_parameters()}, **model.state_dict()}


@pytest.mark.parametrize("memory", ["layer", "unit", "segment"])
def test_three_steps_of_sgd(memory, threads):
    chain = fp.PreActSequential(
        fp.PreActBottleneck(16, 8, preact="shared", stride_at="1x1", memory=memory),
        fp.PreActBottleneck(32, 8, memory=memory),
        fp.PreActBottleneck(32, 12, 2, preact="shared", memory=memory),
        fp.PreActBottleneck(48, 12, memory=memory),
    ).double()
    kind = {"dtype": torch.float64, "memory_format": torch.channels_last}
    batches = [(torch.randn(n, 16, 13, 11).to(**kind), torch.randn(n, 48, 7, 6).to(**kind)) for n in (4, 3, 4)]
    wanted = trained(copy.deepcopy(chain), "eager", batches)
    before = copy.deepcopy(chain.state_dict())
    got = trained(chain, "cpu", batches)
    assert any(not torch.equal(before[name], chain.state_dict()[name]) for name in before)
    assert got.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("memory", ["layer", "unit"])
@pytest.mark.parametrize("size", [1, 5])
def test_the_format_of_a_unit_is_that_of_its_layers(size, memory):
    """An NCHW image and channels_last weights: the 3x3 in the middle decides, whether its output is kept or not."""
    unit = fp.PreActBottleneck(8, 4, memory=memory).to(memory_format=torch.channels_last)
    x = torch.randn(3, 8, size, size)
    strides = {}
    for backend in ("cpu", "eager"):
        with fp.use_backend(backend):
            strides[backend] = [unit(x).stride()]
            with torch.no_grad():
                strides[backend].append(unit(x).stride())
    assert strides["cpu"] == strides["eager"]
