"""A fused model is still the model: its keys, copies, pickles, optimizers, modes; and what `fuse` leaves alone."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import fused_preact as fp
from fused_preact.convert import is_fused
from fused_preact.convert.norms import FusedNorm
from tests.convert.networks import Bottleneck, Dense, NormWithActivation, Wide
from tests.convert.test_fuse import images, step


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(Bottleneck(8, 4, 2), Bottleneck(16, 4), NormWithActivation(16), nn.Conv2d(16, 8, 1))


def assert_close(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-4, atol=1e-5, msg=name)


def fused_norms(net: nn.Module) -> int:
    return sum(isinstance(module, FusedNorm) for module in net.modules())


def test_same_keys_and_parameters():
    plain = model()
    fused = fp.fuse(plain)
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in fused.named_modules()] == [name for name, _ in plain.named_modules()]
    fused.load_state_dict(plain.state_dict())
    assert fused_norms(plain) == 0, "fuse without inplace changes nothing of its argument"
    assert all(isinstance(fused.get_submodule(f"0.bn{i}"), nn.BatchNorm2d) for i in (1, 2, 3))


def test_in_place_and_back():
    net = model()
    kinds = [type(module) for module in net.modules()]
    parameters = [id(p) for p in net.parameters()]
    assert not is_fused(net)
    assert fp.fuse(net, inplace=True) is net
    assert is_fused(net)
    assert fused_norms(net) == 7
    assert fp.fuse(net, inplace=True) is net, "fusing twice is fusing once"
    assert fused_norms(net) == 7
    assert fp.unfuse(net) is net
    assert [type(module) for module in net.modules()] == kinds
    assert [id(p) for p in net.parameters()] == parameters


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "deepcopy of a pickle": lambda net: copy.deepcopy(pickle.loads(pickle.dumps(net))),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies(how):
    fused = fp.fuse(model())
    step(fused, images())
    other = COPIES[how](fused)
    assert fused_norms(other) == 7
    for net in (fused, other):
        net.zero_grad()
    a, b = step(fused, images()), step(other, images())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert fused_norms(fp.unfuse(other)) == 0


def test_save_and_load(tmp_path):
    fused = fp.fuse(model())
    torch.save(fused, tmp_path / "model.pt")
    torch.save(fused.state_dict(), tmp_path / "weights.pt")
    whole = torch.load(tmp_path / "model.pt", weights_only=False)
    assert_close(step(whole, images()), step(copy.deepcopy(fused), images()))
    plain = model()
    plain.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", [lambda p: torch.optim.SGD(p, 0.1, 0.9), torch.optim.AdamW], ids=["sgd", "adamw"])
def test_optimizers_built_before_and_after(when, kind):
    plain, net = model(), model()
    if when == "before":
        optimizer = kind(net.parameters())
        fp.fuse(net, inplace=True)
    else:
        fp.fuse(net, inplace=True)
        optimizer = kind(net.parameters())
    other = kind(plain.parameters())
    for _ in range(3):
        for each, opt in ((net, optimizer), (plain, other)):
            opt.zero_grad()
            each(images()).square().mean().backward()
            opt.step()
    for (name, p), q in zip(net.named_parameters(), plain.parameters(), strict=True):
        # Adam divides by what may be rounding alone.
        torch.testing.assert_close(p, q, rtol=1e-3, atol=3e-3 if kind is torch.optim.AdamW else 1e-4, msg=name)


def test_averages_of_models():
    fused, plain = fp.fuse(model()), model()
    averages = [AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=False) for net in (fused, plain)]
    for net, average in zip((fused, plain), averages, strict=True):
        torch.optim.SGD(net.parameters(), 0.1).zero_grad()
        net(images()).sum().backward()
        average.update_parameters(net)
        update_bn([images(), images(batch=2)], average)
    assert_close(dict(averages[0].named_buffers()), dict(averages[1].named_buffers()))


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_momentum_and_modes(momentum):
    """Cumulative averages, frozen norms in a training network, norms without running statistics and without parameters."""
    nets = []
    for fuse in (fp.fuse, lambda net: net):
        net = model()
        net[0].bn1.momentum = net[2].momentum = momentum or 0.1
        net[0].bn2.momentum = momentum
        net[1].bn1.eval()
        net[1].bn2 = nn.BatchNorm2d(4, track_running_stats=False)
        net[1].bn3 = nn.BatchNorm2d(4, affine=False)
        net[0].conv1.weight.requires_grad_(False)
        net[0].bn3.weight.requires_grad_(False)
        nets.append(fuse(net))
    for _ in range(2):
        found = [step(net, images()) for net in nets]
    for name, value in found[0].items():
        if value is not None:
            torch.testing.assert_close(value, found[1][name], rtol=1e-3, atol=1e-4, msg=name)
    assert found[0]["0.conv1.weight.grad"] is None
    assert found[0]["0.bn3.weight.grad"] is None


def test_convert_sync_batchnorm_before():
    net = fp.fuse(nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(Bottleneck(8, 4))))
    assert isinstance(net[0].bn1, nn.SyncBatchNorm)
    assert fused_norms(net) == 3


def test_convert_sync_batchnorm_after():
    """The converted norms are new modules, not fused; fusing again fuses them."""
    net = nn.SyncBatchNorm.convert_sync_batchnorm(fp.fuse(nn.Sequential(Bottleneck(8, 4))))
    assert type(net[0].bn1) is nn.SyncBatchNorm
    fp.fuse(net, inplace=True)
    assert fused_norms(net) == 3
    assert fused_norms(fp.unfuse(net)) == 0
    assert type(net[0].bn1) is nn.SyncBatchNorm


def test_input_changed_in_place_is_noticed():
    class Spoils(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            z = F.relu(self.bn(x))
            if not self.training:
                x.add_(1)
            y = self.conv(z)
            return x.add_(1) + y

    plain = Spoils()
    net = fp.fuse(plain)
    with torch.no_grad():
        torch.testing.assert_close(net(images()), plain(images()))
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"input of a FusedBatchNorm2d, shape \(3, 8, 8, 8\), was changed in place"):
        net.eval()(images())


def test_results_changed_in_place():
    """What somebody writes into an activation counts for every reader, whichever name it goes by."""

    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.conv, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            z = self.bn(x)
            same = z
            z.mul_(2)
            a = self.conv(F.relu(same))
            other = a
            a += x
            b = self.last(F.relu(self.bn(other)))
            view = b[:, :4]
            view.zero_()
            w = self.bn(x)
            w.mean()
            w[:, 0] = 0
            return b + self.conv(F.relu(w)) * a

    torch.manual_seed(0)
    plain = Writes()
    assert_close(step(fp.fuse(plain), images()), step(plain, images()))


REFUSED = {
    "no norm": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), "it has no BatchNorm2d"),
    "another norm": (lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3)), "BatchNorm1d is not a BatchNorm2d"),
    "group norm": (lambda: nn.Sequential(nn.GroupNorm(1, 3), nn.ReLU(), nn.Conv2d(3, 3, 1)), "it has no BatchNorm2d"),
    "no convolution": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), "it has no Conv2d"),
    "lazy": (lambda: nn.Sequential(nn.LazyBatchNorm2d(), nn.ReLU(), nn.Conv2d(3, 3, 1)), "LazyBatchNorm2d has no parameters yet"),
    "scripted": (lambda: torch.jit.script(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1))), "it has no BatchNorm2d"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_nothing_to_fuse(case):
    make, reason = REFUSED[case]
    net = make()
    kinds = [type(module) for module in net.modules()]
    with pytest.warns(UserWarning, match=f"comes back as it was: .*{reason}"):
        assert fp.fuse(net, inplace=True) is net
    assert [type(module) for module in net.modules()] == kinds


def test_left_alone():
    """Parametrized modules, a norm with a forward of its own, weight_norm: as they were, and reported."""
    net = nn.Sequential(Bottleneck(8, 4), Wide(16, 16), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1))
    nn.utils.parametrizations.weight_norm(net[0].conv2)
    nn.utils.parametrize.register_parametrization(net[0].bn3, "weight", nn.Softplus())
    net[2].forward = lambda x: x * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = fp.fuse(net)
    skipped = dict(fp.explain(fused, images()).skipped)
    assert skipped["0.bn2"] == "its result goes to conv2d"
    assert skipped["0.bn3"] == "ParametrizedBatchNorm2d is parametrized"
    assert skipped["2"] == "BatchNorm2d has a forward of its own"
    assert_close(step(fused, images()), step(net, images()))


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got int"):
        fp.fuse(3)


def test_hooks_see_tensors():
    net, plain, seen, expected = fp.fuse(model()), model(), [], []
    for each, into in ((net, seen), (plain, expected)):
        each[0].bn2.register_forward_hook(lambda _, args, out, into=into: into.append(out.detach().clone()))
        each[0].conv3.register_forward_pre_hook(lambda _, args, into=into: into.append(args[0].detach().clone()))
        each[1].conv2.register_full_backward_hook(lambda _, grads, out, into=into: into.extend([grads[0].clone(), out[0].clone()]))
        each[1].bn1.register_full_backward_hook(lambda _, grads, out, into=into: into.extend([grads[0].clone(), out[0].clone()]))
    assert_close(step(net, images()), step(plain, images()))
    assert len(seen) == len(expected) == 6
    for a, b in zip(seen, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert dict(fp.explain(net, images()).skipped)["0.bn2"] == "it is watched by hooks"


def test_explain_is_a_report():
    text = str(fp.explain(nn.Sequential(Bottleneck(8, 4), Dense(16)), images()))
    assert text.startswith("8 fused triples, 1 of them shared by two convolutions; 1 whole residual units; 0 norms not fused")
    assert "0.bn2 -> ReLU -> 0.conv2 on 3x4x8x8: " in text


def test_explain_names_frozen_convolutions():
    net = nn.Sequential(Bottleneck(8, 4)).requires_grad_(False)
    net[0].bn1.requires_grad_(True)
    assert {triple.conv for triple in fp.explain(net, images()).fused} == {"0.conv1", "0.conv2", "0.conv3", "0.shortcut.0"}


def test_explain_changes_nothing():
    net = model()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    fp.explain(net, images())
    assert fused_norms(net) == 0
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
