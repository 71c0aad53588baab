"""Equations (3) to (8) on networks small enough for float64, and the records against what a network does by hand."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from matplotlib import image
from matplotlib.figure import Figure

from fused_preact.models import reference_model
from fused_preact.models.paper_rows import ROWS
from fused_preact.paper.propagate import measure, small_residuals
from fused_preact.paper.propagate_plot import INK, draw
from fused_preact.paper.propagate_report import Case, Setting, batch, companions, figure_cases, network, report, table, write_json

HALF = {"shortcut": "constant_scaling", "shortcut_scale": 0.5}
PLAIN = {"shortcut": "constant_scaling", "shortcut_scale": 0}
SETTING = Setting(batch_size=4, dtype="float64")


def model_of(name="resnet20", **options):
    return network(Case("", name, {"activation": "full_preact"} | options), SETTING)


def measured(name="resnet20", **options):
    return measure(model_of(name, **options), *batch(SETTING))


def falls(found, key):
    """The value at every unit of every run over that at its end."""
    values = [getattr(unit, key) for unit in found.units] + [found.gradient]
    return [(values[unit.index] / values[unit.end], unit.product) for unit in found.units if unit.end is not None]


@pytest.mark.parametrize("name", ["resnet20", "resnet29"])
@pytest.mark.parametrize(
    ("options", "scale"),
    [({}, 1.0), (HALF, 0.5), (HALF | {"branch_scale": 0.5}, 0.5), ({**HALF, "shortcut_scale": 0.8}, 0.8)],
    ids=["identity", "half", "half-both", "0.8"],
)
def test_along_shortcuts_the_gradient_falls_by_lambda_a_unit(name, options, scale):
    found = measured(name, **options)
    assert len(falls(found, "shortcut_gradient")) == 6
    for unit in found.units:
        if unit.end is not None:
            assert unit.product == pytest.approx(scale ** (unit.end - unit.index), rel=1e-12)
    for fall, product in falls(found, "shortcut_gradient"):
        assert fall == pytest.approx(product, rel=1e-12)


def test_of_the_plain_net_nothing_comes_back_along_shortcuts():
    found = measured(**PLAIN)
    assert [unit.shortcut_gradient for unit in found.units] == [0.0] * 9
    assert all(unit.gradient > 0 for unit in found.units)


def test_gates_multiply_by_what_they_let_through():
    """sigmoid(-6), 1/404, of everything is held back at initialisation, about."""
    found = measured(shortcut="exclusive_gating", gate_bias=-6)
    for unit in found.units:
        assert 1 - unit.scale == pytest.approx(1 / (1 + math.exp(6)), rel=1)
    for fall, product in falls(found, "shortcut_gradient"):
        assert fall == pytest.approx(product, rel=0.01)


def test_of_dropout_lambda_is_the_mean_of_the_mask():
    paper, torchs = (measured(shortcut="dropout", dropout=0.25, **more) for more in ({}, {"rescaled": True}))
    assert [{unit.scale for unit in found.units} for found in (paper, torchs)] == [{0.75}, {1.0}]
    assert paper.units[1].product == 0.75**2


@pytest.mark.parametrize(
    ("options", "four", "seven"),
    [
        ({}, True, True),
        ({"activation": "relu_only_preact"}, True, True),
        ({"activation": "relu_before_addition"}, True, True),
        ({"activation": "original"}, False, False),
        (HALF, False, True),
        (HALF | {"branch_scale": 0.5}, False, True),
        (PLAIN, False, True),
        ({"shortcut": "dropout"}, False, None),
    ],
    ids=["identity", "relu-only", "relu-before", "original-has-f", "half", "half-both", "plain", "dropout"],
)
@pytest.mark.parametrize("name", ["resnet20", "resnet29"])
def test_sums_of_residuals_hold_to_rounding_or_not_at_all(name, options, four, seven):
    runs = measured(name, **options).runs
    assert len(runs) == 3
    for run in runs:
        assert run.equation4 < 1e-14 if four else run.equation4 > 0.1
        assert run.equation7 is None if seven is None else (run.equation7 < 1e-14 if seven else run.equation7 > 0.1)


def test_small_weights_leave_the_gradient_to_the_shortcuts():
    """The original order has no norm in a shortcut, so that scaling and identity differ by the lambdas alone."""
    x, y = batch(SETTING)
    identity, half, plain = (small_residuals(model_of(activation="original", **options), x, y) for options in ({}, HALF, PLAIN))
    assert 0.1 < identity.first / identity.last <= 1
    assert (identity.product, half.product, plain.product) == (1.0, 0.5**9, 0.0)
    assert half.first / half.last == pytest.approx(identity.first / identity.last * 0.5**9, rel=0.02)
    assert plain.first < 1e-9 * plain.last


@pytest.mark.parametrize("options", [{"activation": "original"}, {"activation": "bn_after_addition"}, {}], ids=lambda o: str(o))
def test_small_weights_are_those_of_the_branches_alone(options):
    """Identity units with F of zero put out what came in, where no norm is behind the addition; and the model stays as it was."""
    model = model_of(**options)
    before = copy.deepcopy(model.state_dict())
    found = small_residuals(model, *batch(SETTING), factor=0.0)
    assert found.first > 1e-3 * found.last > 0
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_companions_differ_in_their_shortcuts_alone():
    case = Case("", "resnet20", {"activation": "original", "one_layer": True, "shortcut": "dropout"})
    found = companions(case, SETTING)
    assert [other["product"] for other in found] == [1.0, pytest.approx(0.5**18, rel=1e-5), 0.0]
    for other, options in zip(found, ({}, HALF, PLAIN), strict=True):
        by_hand = small_residuals(model_of(activation="original", one_layer=True, **options), *batch(SETTING))
        assert [other["first"], other["last"]] == pytest.approx([by_hand.first, by_hand.last], rel=1e-5)


def test_the_figure_shows_rows_of_table_1_at_both_depths():
    cases = figure_cases("original")
    assert [case.model for case in cases] == ["resnet110"] * 4 + ["resnet164"] * 4
    rows = [ROWS[f"1-{name}"].options for name in ("original", "scale-shortcut", "exclusive-6", "dropout")]
    assert [case.options for case in cases] == 2 * rows


def test_pre_activation_normalises_what_is_merged_and_the_original_does_not():
    pre, original = measured("resnet56"), measured("resnet56", activation="original")
    for unit in pre.units:
        for layer in unit.layers:
            assert (layer.before.mean, layer.before.std) == (pytest.approx(0, abs=1e-9), pytest.approx(1, rel=0.01))
    merged = {unit.index: next(layer for layer in unit.layers if layer.name == "conv1").before.std for unit in original.units}
    # Unit 0 reads the norm of conv1 still; from then on every sum adds to the last.
    assert merged[0] == pytest.approx(1, rel=0.01)
    assert all(merged[i] > 1.1 for i in range(1, 27))
    assert merged[8] > 1.5 * merged[1]
    assert all(layer.before.std == pytest.approx(1, rel=0.01) for u in original.units for layer in u.layers if layer.name == "conv2")


def test_records_are_those_of_a_network_run_by_hand():
    x, y = batch(SETTING)
    model = model_of().train()
    found = measure(copy.deepcopy(model), x, y)
    signals = [model.conv1(x)]
    signals[0].retain_grad()
    residuals, reads = [], []
    for unit in model.units():
        z = F.relu(unit.bn1(signals[-1]))
        h = F.relu(unit.bn2(unit.conv1(z)))
        residual = unit.conv2(h)
        signals.append(residual + unit.shortcut(z if unit.shared else signals[-1]))
        signals[-1].retain_grad()
        residuals.append(residual)
        reads.append((z, h))
    loss = F.cross_entropy(model.fc(F.relu(model.bn(signals[-1])).mean((2, 3))), y)
    loss.backward()
    assert found.loss == pytest.approx(loss.item(), rel=1e-12)
    assert [found.signal, found.gradient] == pytest.approx([signals[-1].norm().item(), signals[-1].grad.norm().item()])
    for unit, signal, residual, tensors in zip(found.units, signals, residuals, reads, strict=False):
        norms = [signal.norm().item(), residual.norm().item(), signal.grad.norm().item()]
        assert [unit.signal, unit.residual, unit.gradient] == pytest.approx(norms, rel=1e-9)
        for layer, tensor in zip(unit.layers, tensors, strict=True):
            assert tuple(layer.input) == pytest.approx((tensor.mean().item(), tensor.std(correction=0).item()), rel=1e-9)
    assert [unit.stage for unit in found.units] == [1] * 3 + [2] * 3 + [3] * 3
    assert [unit.end for unit in found.units] == [None, 3, 3, None, 6, 6, None, 9, 9]


def test_a_model_stays_as_it_was_and_masks_come_from_the_seed():
    x, y = batch(SETTING)
    model = model_of(shortcut="dropout").eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first, second, other = measure(model, x, y), measure(model, x, y), measure(model, x, y, seed=1)
    assert first == second
    assert first.gradient != other.gradient
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not model.conv1._forward_hooks
    assert model.conv1.weight.grad is None


def test_float32_is_float64_to_its_rounding():
    single = measure(reference_model_like(torch.float32), *batch(SETTING._replace(dtype="float32")))
    double = measure(reference_model_like(torch.float64), *batch(SETTING))
    for a, b in zip(single.units, double.units, strict=True):
        assert [a.signal, a.gradient] == pytest.approx([b.signal, b.gradient], rel=1e-3)
    assert all(run.equation4 < 1e-6 for run in single.runs)


def reference_model_like(dtype):
    torch.manual_seed(0)
    return reference_model("resnet20", activation="full_preact").to(dtype)


def test_a_picture_and_json_of_several_networks(tmp_path):
    cases = [case._replace(model="resnet20") for case in figure_cases("full_preact")[:4]]
    found = report(((case, network(case, SETTING)) for case in cases), SETTING, tell=lambda message: None)
    draw(found, tmp_path / "figure.png")
    write_json(found, tmp_path / "figure.json")
    assert image.imread(tmp_path / "figure.png").std() > 0.01
    lines = table(found, all_units=True).splitlines()
    assert sum(line.split()[1:3] == ["1", "identity"] for line in lines) == 3 * 4


RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def test_lines_of_the_picture(tmp_path, monkeypatch):
    """Of every network and depth: gradients over that of the last unit, signals, and what equation (8) predicts on what is measured."""
    drawn, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: (drawn.append(self), savefig(self, *args, **kwargs)))
    networks = json.loads((RESULTS / "propagation.json").read_text())["networks"]
    draw({"networks": networks}, tmp_path / "figure.png")
    panels = drawn[0].axes
    for found in networks:
        column = ("resnet110", "resnet164").index(found["model"])
        measured = {
            key: [unit[key] / found["gradient"] for unit in found["units"]] + [1.0] for key in ("shortcut_gradient", "gradient")
        } | {"signal": [unit["signal"] for unit in found["units"]] + [found["signal"]]}
        for axes, (key, values) in zip(panels[column::2], measured.items(), strict=True):
            (line,) = [line for line in axes.get_lines() if line.get_label() == found["name"]]
            x, y = line.get_data()
            assert list(x) == list(range(55)), key
            assert [value for value in y if not math.isnan(value)] == pytest.approx([value for value in values if value > 1e-18])
        if found["name"] == "0.5 scaling":
            dotted = [line.get_data() for line in panels[column].get_lines() if line.get_color() == INK]
            on_it = [
                all(y[i] == pytest.approx(measured["shortcut_gradient"][unit], rel=1e-3) for i, unit in enumerate(x)) for x, y in dotted
            ]
            assert sum(on_it) >= len(found["runs"]) == 3


@pytest.mark.parametrize(
    "found", json.loads((RESULTS / "propagation.json").read_text())["networks"], ids=lambda n: f"{n['model']}-{n['name']}"
)
def test_the_committed_figure_shows_what_its_page_says(found):
    units, end = found["units"], found["gradient"]
    assert len(units) == 54
    last_stage, whole = units[37]["shortcut_gradient"] / end, units[0]["gradient"] / end
    if found["name"] == "identity":
        assert last_stage == pytest.approx(1, rel=1e-5)
        assert all(run["equation4"] < 8.5e-8 for run in found["runs"])
        assert whole == pytest.approx({"resnet110": 400, "resnet164": 1100}[found["model"]], rel=0.02)
    elif found["name"] == "0.5 scaling":
        assert last_stage == pytest.approx(0.5**17, rel=1e-4)
        assert all(run["equation4"] > 3.1 and run["equation7"] < 3.3e-8 for run in found["runs"])
        assert whole == pytest.approx({"resnet110": 4.6e6, "resnet164": 5.3e8}[found["model"]], rel=0.02)
    elif found["name"] == "dropout":
        beyond = {"resnet110": 24, "resnet164": 19}[found["model"]]
        assert [unit["shortcut_gradient"] > 0 for unit in units] == [i >= beyond for i in range(54)]
    else:
        assert last_stage == pytest.approx({"resnet110": 1.25, "resnet164": 0.94}[found["model"]], rel=0.01)
