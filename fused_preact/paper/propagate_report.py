"""What `propagate` measures on networks by name, as JSON and as tables."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_preact import data
from fused_preact._files import write_atomically
from fused_preact.bench.machine import machine, summary
from fused_preact.models import PaperResNet, reference_model
from fused_preact.paper.propagate import SMALL, Propagation, Unit, measure, small_residuals

DATA = ("random", "digits")
DTYPES = ("float32", "float64")
# Of both data sets, and of CIFAR-10.
CLASSES = 10
# How many digits JSON keeps: more than two machines agree on.
_DIGITS = 6


class Case(NamedTuple):
    """A network: what the reader calls it, and what `create_model` does."""

    name: str
    model: str
    options: Mapping[str, Any]


class Setting(NamedTuple):
    """What goes through the networks, and as what: data of `DATA`, dtype of `DTYPES`; the seed is of weights, images and masks."""

    data: str = "random"
    batch_size: int = 32
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"


# Of Table 1: what the paper explains by the equations.
SHORTCUTS: dict[str, dict[str, Any]] = {
    "identity": {"shortcut": "identity"},
    "0.5 scaling": {"shortcut": "constant_scaling", "shortcut_scale": 0.5, "branch_scale": 1.0},
    "exclusive gating": {"shortcut": "exclusive_gating", "gate_bias": -6.0},
    "dropout": {"shortcut": "dropout", "dropout": 0.5},
}
_PLAIN = {"shortcut": "constant_scaling", "shortcut_scale": 0.0, "branch_scale": 1.0}


def figure_cases(activation: str) -> list[Case]:
    """The networks of the figure: identity, scaling, gating and dropout, at the depths of the paper's Table 2."""
    return [
        Case(name, model, {"activation": activation, **options})
        for model in ("resnet110", "resnet164")
        for name, options in SHORTCUTS.items()
    ]


def network(case: Case, setting: Setting) -> PaperResNet:
    """The network of `case` at its initialisation, not fused."""
    torch.manual_seed(setting.seed)
    return reference_model(case.model, num_classes=CLASSES, **case.options).to(setting.device, getattr(torch, setting.dtype))


def batch(setting: Setting) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) and labels (N,): normal noise and any class, or digits (MissingExtraError without scikit-learn)."""
    if setting.data == "digits":
        images, labels = next(iter(data.load("digits").train_batches(setting.batch_size, seed=setting.seed, epoch=0)))
    else:
        generator = torch.Generator().manual_seed(setting.seed)
        # As float64, so that both dtypes see the same images.
        images = torch.randn(setting.batch_size, 3, 32, 32, dtype=torch.float64, generator=generator)
        labels = torch.randint(CLASSES, (setting.batch_size,), generator=generator)
    return images.to(setting.device, getattr(torch, setting.dtype)), labels.to(setting.device)


def report(
    networks: Iterable[tuple[Case, PaperResNet]], setting: Setting, *, weights: str | None = None, tell: Callable[[str], object]
) -> dict[str, Any]:
    """Measure each network on the same batch; `weights` is the file that they are from, and `tell` gets the name of each before."""
    images, labels = batch(setting)
    found = []
    for case, model in networks:
        tell(f"{case.model}, {case.name}")
        found.append(case._asdict() | _as_json(measure(model, images, labels, seed=setting.seed)))
    config = setting._asdict() | {"batch_size": len(labels), "weights": weights}
    return {"machine": machine(setting.device), "config": config, "networks": found}


def companions(case: Case, setting: Setting) -> list[dict[str, Any]]:
    """dE/dx_0 with small residual weights of networks like `case` with other shortcuts: identity, scaling, none (plain)."""
    images, labels = batch(setting)
    unit = {name: value for name, value in case.options.items() if name in ("activation", "one_layer")}
    found = []
    for name, options in {"identity": SHORTCUTS["identity"], "0.5 scaling": SHORTCUTS["0.5 scaling"], "plain": _PLAIN}.items():
        model = network(Case(name, case.model, unit | options), setting)
        found.append({"name": name} | _rounded(small_residuals(model, images, labels, seed=setting.seed)._asdict()))
    return found


def write_json(report: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the report to `path`, a unit a line, all of it or nothing."""
    networks = ",\n".join(_network_lines(found) for found in report["networks"])
    head = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in report.items() if key != "networks")
    text = f'{{\n{head},\n"networks": [\n{networks}\n]\n}}\n'
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def table(report: dict[str, Any], *, all_units: bool = False) -> str:
    """The report for people: of every network its units (first, second, middle and last of each stage), and the equations."""
    config = report["config"]
    batch = f"{config['batch_size']} {'random images' if config['data'] == 'random' else config['data']}, {config['dtype']}"
    start = f"weights of {config['weights']}" if config["weights"] else f"at initialisation (seed {config['seed']})"
    parts = [f"one training step of {batch}, {start}; norms are of whole tensors\n{summary(report['machine'])}"]
    parts += ["\n".join(_network_table(found, all_units)) for found in report["networks"]]
    if others := report.get("small"):
        lines = (f"  {other['name']}: {_small_words(other)}" for other in others)
        parts.append("\n".join((f"the same with other shortcuts, residual weights times {SMALL:g}:", *lines)))
    return "\n\n".join(parts)


def _as_json(found: Propagation) -> dict[str, Any]:
    tree = found._asdict()
    tree |= {"units": [_unit_json(unit) for unit in found.units], "runs": [run._asdict() for run in found.runs]}
    return _rounded(tree | {"small": found.small._asdict()})


def _unit_json(unit: Unit) -> dict[str, Any]:
    layers = {name: {"input": read._asdict(), "before": before and before._asdict()} for name, read, before in unit.layers}
    return unit._asdict() | {"layers": layers}


def _rounded(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _rounded(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_rounded(value) for value in tree]
    return float(f"{tree:.{_DIGITS}g}") if isinstance(tree, float) else tree


def _network_lines(found: dict[str, Any]) -> str:
    units = ",\n".join(json.dumps(unit, allow_nan=False) for unit in found["units"])
    rest = json.dumps({key: value for key, value in found.items() if key != "units"}, allow_nan=False)
    return f'{rest[:-1]}, "units": [\n{units}\n]}}'


_HEADER = (
    ("", "", "", "", "", "", "over that at the run's end", "", "", "std of what weight layers read"),
    ("unit", "stage", "shortcut", "|x|", "|F(x)|", "|dE/dx|", "dE/dx", "by shortcuts", "predicted", "(of what their ReLU read)"),
)


def _network_table(found: dict[str, Any], all_units: bool) -> Iterator[str]:
    units = found["units"]
    options = " ".join(f"{name}={value}" for name, value in found["options"].items())
    yield f"{found['model']} {options}: loss {found['loss']:.4g}"
    rows = [_unit_row(found, i) for i in (range(len(units)) if all_units else _selection(units))]
    rows.append(("end", "", "", f"{found['signal']:.4g}", "", f"{found['gradient']:.3g}", "", "", "", ""))
    yield from _aligned([*_HEADER, *rows])
    for run in found["runs"]:
        scaled = "" if run["equation7"] in (None, run["equation4"]) else f", with lambdas, equation (7), by {run['equation7']:.1e}"
        numbers = f"units {run['first']} to {run['end'] - 1}"
        yield f"{numbers}: x_L = x_l + sum F, equation (4), is off by {run['equation4']:.1e} of |x_L|{scaled}"
    small = found["small"]
    yield f"residual weights times {small['factor']:g}: {_small_words(small)}"


def _unit_row(found: dict[str, Any], i: int) -> tuple[str, ...]:
    unit = found["units"][i]
    compared = ("", "", "")
    if (end := unit["end"]) is not None:
        # What comes back to x_L itself is the same by both ways.
        at_end = found["units"][end] if end < len(found["units"]) else dict.fromkeys(("gradient", "shortcut_gradient"), found["gradient"])
        falls = (_ratio(unit[key], at_end[key]) for key in ("gradient", "shortcut_gradient"))
        compared = (*falls, f"{unit['product']:.3g}")
    read = ("".join((f"{x['input']['std']:.2f}", f" ({x['before']['std']:.2f})" if x["before"] else "")) for x in unit["layers"].values())
    norms = (f"{unit['signal']:.4g}", f"{unit['residual']:.4g}", f"{unit['gradient']:.3g}")
    return (str(unit["index"]), str(unit["stage"]), unit["shortcut"], *norms, *compared, "  ".join(read))


def _selection(units: Sequence[dict[str, Any]]) -> list[int]:
    """First, second, middle and last unit of every stage."""
    stages = [[unit["index"] for unit in group] for _, group in groupby(units, key=lambda unit: unit["stage"])]
    return sorted({numbers[k] for numbers in stages for k in (0, min(1, len(numbers) - 1), len(numbers) // 2, -1)})


def _small_words(small: dict[str, Any]) -> str:
    """Equations (5) and (8) in a few words."""
    norms = f"|dE/dx_0| {small['first']:.3g}, {_ratio(small['first'], small['last'])} of |dE/dx_L|"
    return f"{norms}; the lambdas of all units multiply to {small['product']:.3g}"


def _ratio(value: float, of: float) -> str:
    return f"{value / of:.3g}" if of else "0/0" if not value else "inf"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        *numbers, last = row
        yield "  ".join([*map(str.rjust, numbers, widths[:-1]), last]).rstrip()
