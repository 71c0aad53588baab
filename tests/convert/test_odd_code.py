"""Code that people write around norms and convolutions: fused, it does what it did, in values, all gradients and all buffers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fused_preact as fp
from tests.convert import odd_code, odd_gradients
from tests.convert.parts import Parts
from tests.convert.random_programs import program
from tests.testing.cases import formats

SCENES = [*odd_code.scene, *odd_gradients.scene]


def plain_and_fused() -> tuple[Parts, Parts]:
    plain = Parts().double()
    for bn in plain.modules():
        if isinstance(bn, nn.BatchNorm2d):
            nn.init.uniform_(bn.weight, 0.5, 1.5)
            nn.init.normal_(bn.bias)
    return plain, fp.fuse(plain)


def image(fmt: torch.memory_format = torch.channels_last) -> Tensor:
    return torch.randn(4, 3, 6, 5, dtype=torch.float64).contiguous(memory_format=fmt)


def ran(run: Callable[[Parts, Tensor], Any], m: Parts, x: Tensor) -> dict[str, Any]:
    """What was returned, and all gradients and buffers after it."""
    x = x.clone().requires_grad_()
    result = run(m, x)
    results = {f"result {i}": value for i, value in enumerate(result if isinstance(result, list | tuple) else [result])}
    gradients = {f"gradient of {name}": p.grad for name, p in [*m.named_parameters(), ("x", x)]}
    return {**results, **gradients, **dict(m.named_buffers())}


def assert_same(got: dict[str, Any], wanted: dict[str, Any], rtol: float, atol: float) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, Tensor) and isinstance(got[name], Tensor):
            torch.testing.assert_close(got[name], value, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
        else:
            assert got[name] == value, name


@formats
@pytest.mark.parametrize("scene", SCENES, ids=[s.id for s in SCENES])
def test_as_unfused(scene, fmt):
    (plain, fused), x = plain_and_fused(), image(fmt)
    assert_same(ran(scene.run, fused, x), ran(scene.run, plain, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("first", range(0, 300, 30))
def test_random_programs(first):
    for seed in range(first, first + 30):
        (plain, fused), x = plain_and_fused(), image()
        try:
            wanted = ran(lambda m, x, seed=seed: program(seed, m, x), plain, x)
        except RuntimeError:
            # A tensor that backward needs was changed in place. It may be one that the fused functions don't need.
            continue
        got = ran(lambda m, x, seed=seed: program(seed, m, x), fused, x)
        # What is zero but for rounding is compared with what it is the sum of.
        scale = max(t.abs().max().item() for t in wanted.values() if isinstance(t, Tensor) and t.is_floating_point())
        assert_same(got, wanted, rtol=1e-8, atol=1e-10 * scale)


def weight_before_backward(m: Parts, x: Tensor) -> None:
    y = m.layer(1, m.stem(x)).square()
    with torch.no_grad():
        m.conv1.weight.add_(1)
    y.sum().backward()


def weight_between_norms(m: Parts, x: Tensor) -> None:
    z = m.bn2(m.layer(1, m.stem(x)))
    with torch.no_grad():
        m.conv1.weight.mul_(2)
    F.relu(z).sum().backward()


def input_before_backward(m: Parts, x: Tensor) -> None:
    h = m.stem(x)
    y = m.layer(1, h) * 1
    h.add_(1)
    y.sum().backward()


def inner_result(m: Parts, x: Tensor) -> None:
    h = m.stem(x)
    a = m.layer(1, h)
    y = m.layer(2, a) + h
    a.mul_(2)
    y.sum().backward()


RAISING = {
    "weight before backward": (weight_before_backward, "an optimizer's step too early"),
    "weight between two norms": (weight_between_norms, "the convolution is computed, and not recorded yet"),
    "input before backward": (input_before_backward, "backward reads it"),
    "inner result of a unit": (inner_result, "backward reads it"),
}


@pytest.mark.parametrize(("run", "why"), RAISING.values(), ids=RAISING)
def test_changes_that_spoil_gradients_raise(run, why):
    for m in plain_and_fused():
        with pytest.raises(RuntimeError, match=r"changed in place|modified by an inplace operation"):
            run(m, image())


def bias_changed(m: Parts, x: Tensor) -> None:
    y = m.biased(F.relu(m.bn1(m.stem(x))))
    with torch.no_grad():
        m.biased.bias.add_(2)
    y.sum()


def input_changed(m: Parts, x: Tensor) -> None:
    z = m.bn1(h := m.stem(x).detach())
    h.add_(1)
    m.conv1(z).sum()


def inner_gradient(m: Parts, x: Tensor) -> None:
    h = m.stem(x)
    a = m.layer(1, h)
    torch.autograd.grad((m.layer(2, a) + h).sum(), [a])


def late_hook(m: Parts, x: Tensor) -> None:
    z = F.relu(m.bn1(m.stem(x)))
    y = m.conv1(z)
    z.register_hook(lambda g: g * 2)
    y.sum().backward()


UNLIKE = {
    "bias": (bias_changed, "was changed in place", "the bias is read when the result is used"),
    "input": (input_changed, "was changed in place", "the norm's input is read when its result is used"),
    "inner gradient": (inner_gradient, "ask for it", "inside a unit there is no such gradient"),
    "late hook": (late_hook, "ask for it", "inside a fused function there is no such gradient"),
}


@pytest.mark.parametrize(("run", "message", "why"), UNLIKE.values(), ids=UNLIKE)
def test_what_fused_code_refuses(run, message, why):
    """In words, where the unfused network would go on."""
    plain, fused = plain_and_fused()
    run(plain, image())
    with pytest.raises(RuntimeError, match=message):
        run(fused, image())


@pytest.mark.parametrize(
    "hook", [pytest.param(lambda z: z.register_hook(lambda g: g * 2), id="hook"), pytest.param(lambda z: z.retain_grad(), id="retain_grad")]
)
def test_a_late_hook_on_a_norms_result_is_refused(hook):
    fused = plain_and_fused()[1]
    z = fused.bn1(fused.stem(image()))
    y = fused.conv1(F.relu(z))

    def late() -> None:
        hook(z)
        y.sum().backward()

    with pytest.raises(RuntimeError, match="ask for it"):
        late()


def test_relu_without_gradients_between_norm_and_convolution():
    fused = plain_and_fused()[1]
    z = fused.bn1(fused.stem(image()))
    with torch.no_grad():
        z = F.relu(z)
    fused.conv1(z).sum().backward()
    assert fused.bn1.weight.grad is None
