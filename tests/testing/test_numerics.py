"""The tests' own tools can fail."""

import pytest
import torch

from tests.testing.numerics import assert_as_accurate, drawn


def test_memory_is_poisoned():
    assert torch.empty(3).isnan().all()
    assert torch.empty_like(torch.ones(2, dtype=torch.float64)).isnan().all()


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (torch.tensor([1.0, 2.01]), "largest error"),
        (torch.tensor([1.0, float("nan")]), "not written"),
        (torch.tensor([[1.0, 2.0]]), "shape"),
        (None, "missing"),
    ],
)
def test_the_rule_refuses(got, words):
    truth = torch.tensor([1.0, 2.0], dtype=torch.float64)
    eager = torch.tensor([1.0, 2.001])
    with pytest.raises(AssertionError, match=words):
        assert_as_accurate("y", got, eager, truth)


def test_the_rule_allows_twice_eagers_error():
    truth = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert_as_accurate("y", torch.tensor([1.0, 1.999]), torch.tensor([1.0, 2.001]), truth)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_drawn_is_clear_of_the_relus_edge(dtype, offset):
    gamma, beta = torch.rand(5) + 0.5, torch.randn(5)
    x = drawn((8, 5, 16, 16), gamma, beta, offset, dtype).double()
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    std = (var + 1e-5).sqrt()
    v = (x - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1) * gamma.double().view(1, -1, 1, 1) + beta.double().view(1, -1, 1, 1)
    # A coarse dtype may not be able to represent every push; almost all must be clear.
    assert (v.abs() < 1e-4).double().mean() < (1e-3 if dtype == torch.bfloat16 else 1e-9)
