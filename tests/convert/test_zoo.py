"""CIFAR networks of pytorchcv, which knows nothing of this package: fused, they compute what they did, and save one activation less."""

import copy
import importlib.util
import inspect
from typing import NamedTuple

import pytest
import torch
from torch import nn

from fused_preact.bench.accuracy import KINDS
from fused_preact.convert import explain, fuse
from tests.testing.numerics import assert_as_accurate

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pytorchcv") is None, reason="pytorchcv is missing: pip install --no-deps pytorchcv requests"
)

FAMILIES = ("preresnet", "densenet", "wrn", "pyramidnet")
LARGEST = 20_000_000


class Network(NamedTuple):
    """What `explain` finds: triples, those that two convolutions share, whole residual units, norms that stay as they are."""

    name: str
    why: str
    triples: int
    shared: int = 0
    units: int = 0
    others: int = 1
    slow: bool = True


# The norm that is left over stands in front of the pooling.
NETWORKS = [
    Network("preresnet20", "basic units; the first stage begins with an identity", 18, 2, 9, slow=False),
    Network("preresnet56", "deeper", 54, 2, 27),
    Network("preresnet110", "deeper", 108, 2, 54),
    Network("preresnet164bn", "bottlenecks; every stage begins with a projection of the activation", 162, 3, 54, slow=False),
    Network("preresnet272bn", "deeper", 270, 3, 90),
    Network("preresnet542bn", "deeper", 540, 3, 180),
    Network("preresnet1001", "the deepest with bottlenecks", 999, 3, 333),
    Network("preresnet1202", "the deepest", 1200, 2, 600),
    Network("densenet40_k12", "norm, ReLU, 3x3 in front of a concatenation; transitions pool", 38, slow=False),
    Network("densenet40_k12_bc", "two triples a unit", 38),
    Network("densenet40_k24_bc", "wider", 38),
    Network("densenet40_k36_bc", "wider", 38),
    Network("densenet100_k12", "up to 450 channels", 98),
    Network("densenet100_k24", "up to 900 channels", 98),
    Network("densenet100_k12_bc", "two triples a unit, 99 norms", 98, slow=False),
    Network("densenet250_k24_bc", "deep and wide", 248),
    Network("wrn16_10", "up to 640 channels", 12, 3, 6, slow=False),
    Network(
        "pyramidnet110_a48", "norm and 3x3 without ReLU; a norm ends each unit; channels in no multiple of 4", 108, others=56, slow=False
    ),
    Network("pyramidnet110_a84", "wider", 108, others=56),
]


def variants(*datasets):
    """A parameter for each network and data set; those of cifar10 that are not slow are the fast ones."""
    return [
        pytest.param(network, dataset, id=f"{network.name}_{dataset}", marks=[pytest.mark.slow] * (network.slow or dataset != "cifar10"))
        for network in NETWORKS
        for dataset in datasets
    ]


def factories():
    """All factories, by name."""
    modules = [importlib.import_module(f"pytorchcv.models.{family}_cifar") for family in FAMILIES]
    return {name: make for module in modules for name, make in vars(module).items() if name in module.__all__ and inspect.isfunction(make)}


def make(name):
    return factories()[name]().to(memory_format=torch.channels_last)


def images(batch):
    return torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_no_network_is_forgotten():
    # The factories for SVHN make the networks for CIFAR-10 again.
    found = {name: make for name, make in factories().items() if not name.endswith("_svhn")}
    with torch.device("meta"):
        small = {name for name, make in found.items() if sum(p.numel() for p in make().parameters()) <= LARGEST}
    assert small == {f"{network.name}_{dataset}" for network in NETWORKS for dataset in ("cifar10", "cifar100")}


@pytest.mark.parametrize(("network", "dataset"), variants("cifar10"))
def test_what_is_fused(network, dataset):
    found = explain(make(f"{network.name}_{dataset}"), images(2))
    assert (found.triples, found.shared, found.units, len(found.skipped)) == network[2:6]
    assert len(found.fused) == network.triples + network.shared


def draw(model, clear):
    """Weights that results can be compared at.

    Fresh ones amplify rounding exponentially with depth, so the branch of each residual unit is divided by their number. A ReLU within
    rounding of its edge may pass in one network and not in the other, which is no error of arithmetic, and of millions a few always do
    in float32. clear: norms leave every channel five standard deviations from the edge, on either side, so that none does.
    """
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d) and clear:
                norm.weight.uniform_(0.1, 0.2)
                norm.bias.copy_(torch.where(torch.rand_like(norm.bias) < 0.75, 1.0, -1.0))
            elif isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.1)
        units = [module for module in model.modules() if hasattr(module, "body")]
        for unit in units:
            last = unit.bn if hasattr(unit, "bn") else [*unit.body.modules()][-1]
            last.weight.div_(len(units))
    return model


def results(model, x):
    """Logits, the gradients of each module's parameters and its statistics, after a training step.

    A module's are one tensor, because some alone are rounding and nothing else: a norm in front of norms can't move the loss by its bias.
    """
    logits = model(x)
    logits.backward(torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(logits))
    found = {"logits": logits.detach()}
    for name, module in model.named_modules():
        gradients = [p.grad.flatten() for p in module.parameters(recurse=False)]
        buffers = [buffer for buffer in module.buffers(recurse=False) if buffer.is_floating_point()]
        found |= {f"gradients of {name}": torch.cat(gradients)} if gradients else {}
        found |= {f"statistics of {name}": torch.cat(buffers)} if buffers else {}
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("network", "dataset"), variants("cifar10", "cifar100"))
def test_computes_what_it_computed(network, dataset, dtype):
    plain = draw(make(f"{network.name}_{dataset}"), clear=dtype == torch.float32)
    fused, exact, x = fuse(plain), copy.deepcopy(plain).double(), images(2)
    truth = results(exact, x.double())
    eager = truth if dtype == torch.float64 else results(plain, x)
    got = results(fused.to(dtype), x.to(dtype))
    # Of hundreds of tensors in float32 the largest error of some is bad luck.
    kinds = KINDS if dtype == torch.float64 else ("RMS",)
    assert got.keys() == truth.keys()
    for name, value in truth.items():
        assert_as_accurate(name, got[name], eager[name], value, kinds)
    counts = [dict(model.named_buffers()) for model in (fused, exact)]
    assert all(torch.equal(counts[0][name], n) for name, n in counts[1].items() if not n.is_floating_point())
