"""Every row of the paper's Tables 1 to 3: the network that it is about, and the test error that the paper found."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """id: such as "1-dropout", the table and what differs in it.  case: the paper's words.  model, options: as `create_model` takes them.

    error: test error in %, the paper's median of five runs; None where it says "fail", an error above 20 %.  data: "cifar10" or "cifar100".
    """

    id: str
    table: int
    case: str
    model: str
    options: Mapping[str, Any]
    error: float | None
    data: str = "cifar10"


def _table1() -> list[Row]:
    """ResNet-110 with the original order of activation, and six kinds of shortcuts."""
    scaled, exclusive, only = ({"shortcut": name} for name in ("constant_scaling", "exclusive_gating", "shortcut_only_gating"))
    rows = (
        ("original", "original", {"shortcut": "identity"}, 6.61),
        ("plain", "constant scaling, shortcut 0 (plain net)", scaled | {"shortcut_scale": 0}, None),
        ("scale-shortcut", "constant scaling, shortcut 0.5", scaled | {"shortcut_scale": 0.5, "branch_scale": 1}, None),
        ("scale-both", "constant scaling, shortcut 0.5, F 0.5", scaled | {"shortcut_scale": 0.5, "branch_scale": 0.5}, 12.35),
        ("exclusive-0", "exclusive gating, init b_g = 0 to -5 (here 0)", exclusive | {"gate_bias": 0}, None),
        ("exclusive-6", "exclusive gating, init b_g = -6", exclusive | {"gate_bias": -6}, 8.70),
        ("exclusive-7", "exclusive gating, init b_g = -7", exclusive | {"gate_bias": -7}, 9.81),
        ("shortcut-only-0", "shortcut-only gating, init b_g = 0", only | {"gate_bias": 0}, 12.86),
        ("shortcut-only-6", "shortcut-only gating, init b_g = -6", only | {"gate_bias": -6}, 6.91),
        ("conv1x1", "1x1 conv shortcut", {"shortcut": "conv1x1"}, 12.22),
        ("dropout", "dropout shortcut 0.5", {"shortcut": "dropout", "dropout": 0.5}, None),
    )
    return [Row(f"1-{name}", 1, case, "resnet110", options | {"activation": "original"}, error) for name, case, options, error in rows]


def _table2() -> list[Row]:
    """Identity shortcuts, and five orders of activation."""
    rows = (
        ("original", "original Residual Unit", 6.61, 5.93),
        ("bn_after_addition", "BN after addition", 8.17, 6.50),
        ("relu_before_addition", "ReLU before addition", 7.84, 6.14),
        ("relu_only_preact", "ReLU-only pre-activation", 6.71, 5.91),
        ("full_preact", "full pre-activation", 6.37, 5.46),
    )
    return [
        Row(f"2-{activation.replace('_', '-')}-{depth}", 2, case, f"resnet{depth}", {"activation": activation}, error)
        for activation, case, *errors in rows
        for depth, error in zip((110, 164), errors, strict=True)
    ]


def _table3() -> list[Row]:
    """Original and pre-activation units at several depths."""
    rows = (
        ("cifar10", "ResNet-110 (1layer)", "resnet110", {"one_layer": True}, 9.90, 8.91),
        ("cifar10", "ResNet-110", "resnet110", {}, 6.61, 6.37),
        ("cifar10", "ResNet-164", "resnet164", {}, 5.93, 5.46),
        ("cifar10", "ResNet-1001", "resnet1001", {}, 7.61, 4.92),
        ("cifar100", "ResNet-164", "resnet164", {}, 25.16, 24.33),
        ("cifar100", "ResNet-1001", "resnet1001", {}, 27.82, 22.71),
    )
    return [
        Row(
            f"3-{data}-{model.removeprefix('resnet')}{'-1layer' if options else ''}-{name}",
            3,
            f"{case}, {words}",
            model,
            options | {"activation": activation},
            error,
            data,
        )
        for data, case, model, options, *errors in rows
        for name, words, activation, error in zip(
            ("original", "preact"), ("original unit", "pre-activation unit"), ("original", "full_preact"), errors, strict=True
        )
    ]


ROWS: dict[str, Row] = {row.id: row for row in (*_table1(), *_table2(), *_table3())}
