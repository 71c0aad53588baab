"""Code that people write around norms and convolutions: fused, it does what it did, in values, all gradients and all buffers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_preact as fp
from tests.convert import odd_code, odd_gradients
from tests.convert.parts import Parts, Scene
from tests.testing.cases import formats

SCENES = [*odd_code.scene, *odd_gradients.scene]


def ran(scene: Scene, m: Parts, x: Tensor) -> dict[str, Any]:
    """What a scene returned, and all gradients and buffers after it."""
    x = x.clone().requires_grad_()
    result = scene.run(m, x)
    results = {f"result {i}": value for i, value in enumerate(result if isinstance(result, list | tuple) else [result])}
    gradients = {f"gradient of {name}": p.grad for name, p in [*m.named_parameters(), ("x", x)]}
    return {**results, **gradients, **dict(m.named_buffers())}


@formats
@pytest.mark.parametrize("scene", [pytest.param(s, id=s.id, marks=[pytest.mark.xfail(reason=s.open)] if s.open else []) for s in SCENES])
def test_as_unfused(scene, fmt):
    torch.manual_seed(0)
    plain = Parts().double()
    for bn in plain.modules():
        if isinstance(bn, nn.BatchNorm2d):
            nn.init.uniform_(bn.weight, 0.5, 1.5)
            nn.init.normal_(bn.bias)
    fused, x = fp.fuse(plain), torch.randn(4, 3, 6, 5, dtype=torch.float64).contiguous(memory_format=fmt)
    wanted, got = ran(scene, plain, x), ran(scene, fused, x)
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        if isinstance(value, Tensor) and isinstance(got[name], Tensor):
            torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
        else:
            assert got[name] == value, name
