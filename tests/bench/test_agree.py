"""The gate: right variants pass, and each kind of wrong one is refused by name."""

import pytest
import torch

from fused_preact.bench.agree import Disagreement, Errors, check, limits
from fused_preact.bench.variants import Config, build, common_weights

CONFIG = Config("preact_resnet20", batch_size=8)


@pytest.fixture(scope="module")
def weights():
    return common_weights(CONFIG)


def variant(weights, config=CONFIG):
    return build("fused", config, weights)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("memory", ["layer", "unit", "segment"])
def test_right_variants_pass(weights, dtype, memory):
    config = CONFIG._replace(dtype=dtype, memory=memory)
    errors = check([variant(weights, config)], config, weights)
    assert set(errors) == {"eager", "fused"}
    assert errors["fused"].logits < (1e-5 if dtype == "float32" else 5e-2)


def test_variants_are_left_as_they_came(weights):
    checked = variant(weights)
    check([checked], CONFIG, weights)
    assert all(torch.equal(value, weights[name]) for name, value in checked.model.state_dict().items())
    assert all(parameter.grad is None for parameter in checked.model.parameters())


def scaled_logits(model):
    model.fc.register_forward_hook(lambda module, inputs, logits: logits * 1.0001)


def nan_logits(model):
    model.fc.register_forward_hook(lambda module, inputs, logits: logits * float("nan"))


def one_wrong_gradient(model):
    model.layer1[0].conv1.weight.register_hook(lambda gradient: -gradient)


def all_gradients_a_tenth_too_large(model):
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: 1.1 * gradient)


def wrong_momentum(model):
    model.layer3[2].bn2.momentum = 0.2


def biased_running_variance(model):
    bn = model.layer3[2].bn2

    def bias(module, inputs, logits):
        bn.running_var.sub_(bn.running_var * 0.01)

    model.fc.register_forward_hook(bias)


@pytest.mark.parametrize(
    ("spoil", "quantity"),
    [
        (scaled_logits, "logits"),
        (nan_logits, "logits"),
        (one_wrong_gradient, "gradients"),
        (all_gradients_a_tenth_too_large, "gradients"),
        (wrong_momentum, "statistics"),
        (biased_running_variance, "statistics"),
    ],
)
def test_a_wrong_variant_is_refused(weights, spoil, quantity):
    wrong = variant(weights)
    spoil(wrong.model)
    with pytest.raises(Disagreement, match=rf"^fused does not agree .* error of its {quantity} is .* nothing was timed$"):
        check([wrong], CONFIG, weights)


def test_a_wrong_variant_is_refused_in_bfloat16(weights):
    config = CONFIG._replace(dtype="bfloat16")
    wrong = variant(weights, config)
    for parameter in wrong.model.parameters():
        parameter.register_hook(lambda gradient: -gradient)
    with pytest.raises(Disagreement, match="gradients"):
        check([wrong], config, weights)


def test_a_parameter_without_gradient_is_refused(weights):
    wrong = variant(weights)
    wrong.model.conv1.weight.requires_grad_(False)
    with pytest.raises(Disagreement, match=r"conv1\.weight"):
        check([wrong], CONFIG, weights)


def test_limits_grow_with_the_error_of_eager_and_have_a_floor():
    assert limits(Errors(0.0, 0.0, 0.0)) == (1e-6, pytest.approx(0.02, rel=1e-3), 1e-6)
    assert limits(Errors(0.1, 0.2, 0.3)) == pytest.approx((0.25, 0.52, 0.75), rel=1e-3)
