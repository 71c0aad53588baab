"""What the paper's networks refuse: impossible options, and weights of other codes."""

import pytest
import torch

from fused_preact.models import create_model, load_weights, reference_model

BAD = {
    "depth-of-basic": ("resnet111", {}, r"unknown model 'resnet111'; did you mean 'resnet110'\? expected .* \(6n\+2, .* \(9n\+2, "),
    "depth-of-bottlenecks": ("resnet165", {}, r"unknown model 'resnet165'; did you mean 'resnet164'\? expected .* \(6n\+2, "),
    "depth-that-fits": ("resnet32", {}, r"did you mean 'resnet29'\? expected a depth of 20, 56, 110 \(.* or 29, 164, 1001 \("),
    "depth-of-nothing": ("resnet9999", {}, "did you mean 'resnet1001'"),
    "shortcut": ("resnet20", {"shortcut": "gating"}, "unknown shortcut 'gating'; did you mean '(exclusive|shortcut_only)_gating'"),
    "activation": ("resnet20", {"activation": "preact"}, "unknown activation 'preact'; did you mean '(full|relu_only)_preact'"),
    "no-name": (110, {}, "unknown model 110; did you mean 'resnet110'"),
    "memory": ("resnet20", {"memory": "unit"}, "memory: expected 'layer', the one mode .*, got 'unit'$"),
    "bias-of-identity": ("resnet20", {"gate_bias": -6}, "gate_bias: .* 'exclusive_gating' or 'shortcut_only_gating', got -6 .* 'identity'"),
    "scale-of-dropout": ("resnet20", {"shortcut": "dropout", "branch_scale": 1}, "branch_scale: expected only with .*'constant_scaling'"),
    "rescaled-conv": ("resnet20", {"shortcut": "conv1x1", "rescaled": True}, "rescaled: expected only with shortcut 'dropout'"),
    "infinite-scale": (
        "resnet20",
        {"shortcut": "constant_scaling"} | {"shortcut_scale": float("inf")},
        "shortcut_scale: expected a float32 number, got inf",
    ),
    "too-large-a-bias": (
        "resnet20",
        {"shortcut": "exclusive_gating", "gate_bias": 1e39},
        "gate_bias: expected a float32 number, got 1e\\+39",
    ),
    "whole-number-without-end": (
        "resnet20",
        {"shortcut": "constant_scaling"} | {"branch_scale": 10**400},
        "branch_scale: expected a float32 number, got 10",
    ),
    "word-as-bias": ("resnet20", {"shortcut": "exclusive_gating", "gate_bias": "low"}, "gate_bias: expected a float32 number, got 'low'"),
    "yes-as-bias": ("resnet20", {"shortcut": "exclusive_gating", "gate_bias": True}, "gate_bias: expected a float32 number, got True"),
    "rate": ("resnet20", {"shortcut": "dropout", "dropout": 1}, "dropout: expected a rate of at least 0 and below 1, got 1"),
    "yes-as-rate": ("resnet20", {"shortcut": "dropout", "dropout": False}, "dropout: expected a rate .*, got False"),
    "rescaled": ("resnet20", {"shortcut": "dropout", "rescaled": 2}, "rescaled: expected True or False, got 2"),
    "one-layer": ("resnet20", {"one_layer": "no"}, "one_layer: expected True or False, got 'no'"),
    "one-layer-bottleneck": ("resnet164", {"one_layer": True}, "one_layer: expected False with bottlenecks"),
}


@pytest.mark.parametrize("make", [create_model, reference_model])
@pytest.mark.parametrize(("name", "options", "sentence"), BAD.values(), ids=BAD)
def test_bad_input(make, name, options, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        make(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "option", "nearest"), [("resnet20", "gatebias", "gate_bias"), ("preact_resnet20", "shortcut", None)], ids=["misspelt", "fixed"]
)
def test_an_option_that_the_network_does_not_have(name, option, nearest):
    with pytest.raises(TypeError, match=f"^unknown option of {name} '{option}'; .*{nearest or 'known: '}"):
        create_model(name, **{option: -6})


@pytest.mark.parametrize(
    "options",
    [{}, {"activation": "full_preact", "shortcut": "dropout"}, {"activation": "full_preact", "one_layer": True}],
    ids=["original", "dropout", "one-layer"],
)
def test_a_variant_takes_no_other_codes_weights(tmp_path, options):
    """The authors' flat list fits ResNet-20 with other units, norm by norm and convolution by convolution."""
    path, model = tmp_path / "w.pt", create_model("resnet20", **options)
    tensors = [t for key, t in reference_model("preact_resnet20").state_dict().items() if not key.endswith("num_batches_tracked")]
    theirs = [t.shape for key, t in model.state_dict().items() if not key.endswith("num_batches_tracked")]
    assert [t.shape for t in tensors] == theirs
    torch.save(tensors, path)
    with pytest.raises(ValueError, match=r"layout 'torch7' is one of .* networks, got a rewired one"):
        load_weights(model, path)
    assert load_weights(create_model("resnet20", activation="full_preact"), path) == "torch7"


def test_a_variant_takes_its_own(tmp_path):
    source, model = reference_model("resnet29"), create_model("resnet29")
    torch.save(source.state_dict(), tmp_path / "w.pt")
    assert load_weights(model, tmp_path / "w.pt") == "fused_preact"
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())
