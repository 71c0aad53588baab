"""An ablation as a picture, like the paper's figures 3 and 6: training loss and test error over iterations."""

import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from fused_preact._extras import require
from fused_preact._files import write_atomically
from fused_preact.paper.ablate_report import Curve, Result
from fused_preact.train.curves import FAINT, INK, TEST, TRAIN, dress, ticks

Values = Callable[[Curve], list[float]]

# Okabe and Ito's, which the colour-blind tell apart; their yellow, too light for a line, is darker.
COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b8a800")
_DASHES = (0, (4, 1.6))
_COLUMNS = 4
_LEGEND_WIDTH = 38
_DECADE = 10.0


def draw(results: Sequence[Result], title: str, path: str | os.PathLike[str]) -> None:
    """Draw medians over the seeds to the PNG file `path`, all of it or nothing.

    Up to eight rows share two panels, dashed training loss and solid test error, with the range of the seeds as a band; more get a panel
    each, with the first row's curves in grey. From where a run diverged, the others are drawn. Raises MissingExtraError without
    matplotlib, OSError if the file can't be written.
    """
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(facecolor="white")
    FigureCanvasAgg(figure)
    (_together if len(results) <= len(COLOURS) else _apart)(figure, results)
    figure.text(
        0.1 / figure.get_figwidth(), 1 - 0.22 / figure.get_figheight(), title, color=INK, fontsize=9.5, fontweight="bold", va="center"
    )
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


def _together(figure: Any, results: Sequence[Result]) -> None:
    figure.set_size_inches(12, 5.2)
    left, right = figure.subplots(1, 2, gridspec_kw={"left": 0.05, "right": 0.76, "top": 0.84, "bottom": 0.1, "wspace": 0.14})
    for axes, heading, values in ((left, "training loss", _losses), (right, "test error, %", _errors)):
        dress(axes, heading)
        for result, colour in zip(results, COLOURS, strict=False):
            label = textwrap.fill(result.row.case, _LEGEND_WIDTH)
            label = f"{result.row.id}{' (fail)' if result.failed else ''}\n{label}"
            _line(axes, result.curves, values, colour, _DASHES if axes is left else "-", label, band=True)
        _scale(axes, (curve for result in results for curve in result.curves), values)
        axes.set_xlabel("iteration", color=FAINT, fontsize=9)
    figure.legend(
        *right.get_legend_handles_labels(),
        loc="upper left",
        bbox_to_anchor=(0.77, 0.86),
        frameon=False,
        fontsize=8.5,
        labelspacing=0.9,
        labelcolor="linecolor",
    )


def _apart(figure: Any, results: Sequence[Result]) -> None:
    rows = -(-len(results) // _COLUMNS)
    height = 0.6 + 2.5 * rows
    figure.set_size_inches(13, height)
    grid = {"left": 0.045, "right": 0.955, "top": 1 - 0.8 / height, "bottom": 0.45 / height, "wspace": 0.42, "hspace": 0.42}
    panels = list(figure.subplots(rows, _COLUMNS, gridspec_kw=grid, squeeze=False).flat)
    for axes, result in zip(panels, results, strict=False):
        dress(axes, f"{result.row.id}{' (fail)' if result.failed else ''}")
        axes.title.set_fontsize(8.5)
        error = axes.twinx()
        dress(error, "")
        error.grid(visible=False)
        for shown, colours in ((results[0], ("#b5bdc6", "#b5bdc6")), (result, (TRAIN, TEST))):
            _line(axes, shown.curves, _losses, colours[0], _DASHES, "")
            _line(error, shown.curves, _errors, colours[1], "-", "")
        for side, values, colour in ((axes, _losses, TRAIN), (error, _errors, TEST)):
            _scale(side, (*results[0].curves, *result.curves), values)
            side.tick_params(axis="y", colors=colour, labelsize=8)
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    for x, name, colour in (
        (0.7, "- -  training loss", TRAIN),
        (0.8, "—  test error, %", TEST),
        (0.895, f"grey: {results[0].row.id}", FAINT),
    ):
        figure.text(x, 1 - 0.45 / height, name, color=colour, fontsize=8.5, va="center")


def _losses(curve: Curve) -> list[float]:
    return curve.train_loss


def _errors(curve: Curve) -> list[float]:
    return curve.test_error


def _line(axes: Any, curves: Sequence[Curve], values: Values, colour: str, style: Any, label: str, band: bool = False) -> None:
    steps = max((curve.steps for curve in curves), key=len)
    points = [[values(curve)[i] for curve in curves if len(curve.steps) > i] for i in range(len(steps))]
    # A line of one point has no length.
    marker = {"marker": "o", "markersize": 4} if len(points) == 1 else {}
    axes.plot(steps, list(map(median, points)), color=colour, linestyle=style, linewidth=1.5, label=label, **marker)
    if band and len(curves) > 1:
        axes.fill_between(steps, list(map(min, points)), list(map(max, points)), color=colour, alpha=0.1, linewidth=0)


def _scale(axes: Any, curves: Iterable[Curve], values: Values) -> None:
    """All of the values, on a logarithmic axis where they fall far; what is 0 then lies below it."""
    found = [value for curve in curves for value in values(curve) if value > 0]
    logarithmic = bool(found) and max(found) > _DECADE * min(found)
    ticks(axes, logarithmic)
    if logarithmic:
        axes.set_ylim(min(found) / 1.3, max(found) * 1.3)
    axes.set_xlim(left=0)
