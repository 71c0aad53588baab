"""Children that are watched, parametrized or replaced behave as users expect: the module falls back to calling them."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from fused_preact import PreActBlock, PreActBottleneck, PreActConv2d
from tests.modules.test_units import randomise

X = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))


def modules():
    return [PreActConv2d(8, 8, 3, padding=1), PreActBlock(8, 8), PreActBottleneck(8, 4, 2, preact="shared")]


def child(module: nn.Module, kind: type) -> nn.Module:
    return [m for m in module.children() if isinstance(m, kind)][-1]


@pytest.mark.parametrize("module", modules(), ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.Conv2d])
def test_forward_hooks_fire_once(kind, module):
    seen = []
    handle = child(module, kind).register_forward_hook(lambda m, args, out: seen.append(out.shape))
    wanted = copy.deepcopy(module)(X)
    seen.clear()
    torch.testing.assert_close(module(X), wanted)
    assert len(seen) == 1
    handle.remove()
    module(X)
    assert len(seen) == 1


@pytest.mark.parametrize("module", modules(), ids=lambda m: type(m).__name__)
def test_backward_hooks_fire(module):
    seen = []
    child(module, nn.Conv2d).register_full_backward_hook(lambda m, grad_in, grad_out: seen.append(1))
    module(X.clone().requires_grad_()).sum().backward()
    assert seen == [1]


@pytest.mark.parametrize("module", modules(), ids=lambda m: type(m).__name__)
def test_global_hooks_see_the_children(module):
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: seen.append(type(m)))
    module(X)
    handle.remove()
    assert nn.Conv2d in seen
    assert nn.BatchNorm2d in seen


@pytest.mark.parametrize("module", modules(), ids=lambda m: type(m).__name__)
def test_parametrizations_train(module):
    conv = child(module, nn.Conv2d)
    wanted = conv.weight.detach().clone()
    parametrizations.weight_norm(conv)
    torch.testing.assert_close(conv.weight, wanted)
    module(X).square().sum().backward()
    assert conv.parametrizations.weight.original0.grad.abs().sum() > 0
    assert conv.parametrizations.weight.original1.grad.abs().sum() > 0


@pytest.mark.parametrize("module", modules(), ids=lambda m: type(m).__name__)
def test_pruning_masks(module):
    conv = child(module, nn.Conv2d)
    prune.l1_unstructured(conv, "weight", 0.5)
    masked = module(X)
    prune.remove(conv, "weight")
    assert (conv.weight == 0).sum() == conv.weight.numel() // 2
    torch.testing.assert_close(masked, module(X))


class DoubledConv(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class ShiftedNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


def test_subclasses_are_called():
    m = PreActConv2d(8, 8, 3)
    m.bn, m.conv = ShiftedNorm(8), DoubledConv(8, 8, 3)
    torch.testing.assert_close(m(X), copy.deepcopy(m.conv)(F.relu(copy.deepcopy(m.bn)(X))))
    unit = PreActBlock(8, 8)
    unit.conv2 = DoubledConv(8, 8, 3, padding=1)
    twin = copy.deepcopy(unit)
    torch.testing.assert_close(unit(X), twin.call_children(X))


@pytest.mark.parametrize("name", ["conv1", "conv3", "downsample"])
def test_a_bias_put_into_a_unit_is_not_lost(name):
    unit = PreActBottleneck(8, 4, 2, preact="shared")
    old = getattr(unit, name)
    setattr(unit, name, nn.Conv2d(old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding))
    twin = copy.deepcopy(unit)
    y = unit(X)
    torch.testing.assert_close(y, twin.call_children(X))
    y.sum().backward()
    assert getattr(unit, name).bias.grad is not None


@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}], ids=str)
def test_other_paddings_are_called(options):
    m = PreActConv2d(8, 8, 3)
    m.conv = nn.Conv2d(8, 8, 3, **options)
    torch.testing.assert_close(m(X), copy.deepcopy(m.conv)(F.relu(copy.deepcopy(m.bn)(X))))


def test_an_own_forward_is_called():
    m = PreActConv2d(8, 8, 3)
    m.conv.forward = lambda x: x.new_ones(1)
    assert torch.equal(m(X), torch.ones(1))


def test_residual_of_a_watched_layer_is_added():
    m = PreActConv2d(8, 8, 3, padding=1)
    wanted = copy.deepcopy(m)(X, residual=X)
    m.conv.register_forward_hook(lambda *args: None)
    torch.testing.assert_close(m(X, residual=X), wanted)


def test_state_dict_is_that_of_the_children():
    m = PreActConv2d(3, 4, 3, bias=True)
    twin = nn.ModuleDict({"bn": nn.BatchNorm2d(3), "conv": nn.Conv2d(3, 4, 3)})
    twin.load_state_dict(m.state_dict())
    assert list(m.state_dict()) == list(twin.state_dict())
    torch.manual_seed(5)
    a = PreActConv2d(3, 4, 3, bias=True)
    torch.manual_seed(5)
    b = nn.Conv2d(3, 4, 3)
    assert torch.equal(a.conv.weight, b.weight)
    assert torch.equal(a.conv.bias, b.bias)


@pytest.mark.parametrize("module", modules(), ids=lambda m: type(m).__name__)
def test_deepcopy_and_pickle(module):
    randomise(module)
    wanted = copy.deepcopy(module)(X)
    torch.testing.assert_close(pickle.loads(pickle.dumps(module))(X), wanted)


def test_convert_sync_batchnorm_keeps_the_unit():
    unit = nn.SyncBatchNorm.convert_sync_batchnorm(PreActBottleneck(8, 2))
    assert type(unit) is PreActBottleneck
    assert type(unit.bn2) is nn.SyncBatchNorm
    twin = PreActBottleneck(8, 2)
    twin.load_state_dict(unit.state_dict())
    torch.testing.assert_close(unit(X), twin(X))


def test_vmap_is_refused_by_torch():
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.vmap(PreActConv2d(8, 8, 3).eval())(X[:, None])
