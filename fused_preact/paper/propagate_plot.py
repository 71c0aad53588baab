"""Propagation as a picture: gradients and signals over the units, a line for each network and a column for each depth."""

import math
import os
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

from fused_preact._extras import require
from fused_preact._files import write_atomically

INK, FAINT, GRID = "#1f2933", "#6b7785", "#e4e8eb"
# Okabe and Ito's, which the colour-blind tell apart; dashes tell them apart in grey.
_STYLES = (("#0072b2", "-"), ("#d55e00", "-"), ("#009e73", (0, (6, 1.5))), ("#cc79a7", (0, (3, 1.2))))
# Below this a gradient is as good as none, and the rest of the picture would be a strip.
_FLOOR = 1e-18
# An axis of fewer than three has ticks between them.
_DECADES = 1e3


def draw(report: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw a report of `propagate_report.report` to the PNG file `path`, all of it or nothing.

    Raises MissingExtraError without matplotlib, OSError if the file can't be written.
    """
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = [list(group) for _, group in groupby(report["networks"], key=lambda found: found["model"])]
    figure = Figure(figsize=(1.1 + 4.6 * len(columns), 7.4), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, len(columns), sharex="col", sharey="row", squeeze=False)
    left = 0.75 / figure.get_figwidth()
    figure.subplots_adjust(left=left, right=0.985, top=0.895, bottom=0.065, wspace=0.06, hspace=0.2)
    for column, networks in enumerate(columns):
        alone, whole, signal = panels[:, column]
        for found, (colour, dashes) in zip(networks, _STYLES, strict=False):
            style = {"color": colour, "linestyle": dashes, "linewidth": 1.6, "label": found["name"], "zorder": 3}
            end = found["gradient"] or math.nan
            for axes, key in ((alone, "shortcut_gradient"), (whole, "gradient")):
                _line(axes, [unit[key] / end for unit in found["units"]] + [1.0], style)
            _line(signal, [unit["signal"] for unit in found["units"]] + [found["signal"]], style)
            _predict(alone, found, end)
            _remark_on_nothing(alone, colour)
        for axes in (alone, whole, signal):
            _dress(axes, networks[0]["units"])
        panels[0, column].set_title(networks[0]["model"].replace("resnet", "ResNet-"), loc="right", color=INK, fontsize=10.5)
        signal.set_xlabel("unit l", color=FAINT, fontsize=9)
    headings = (
        r"$\|\partial E/\partial x_l\|\,/\,\|\partial E/\partial x_L\|$, along shortcuts alone",
        r"$\|\partial E/\partial x_l\|\,/\,\|\partial E/\partial x_L\|$, all paths",
        r"signal $\|x_l\|$",
    )
    for axes, heading in zip(panels[:, 0], headings, strict=True):
        axes.set_title(heading, loc="left", color=INK, fontsize=10)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    predicted = Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (1, 2)))
    figure.legend(
        [*handles, predicted],
        [*labels, r"predicted, $\prod\lambda$"],
        loc="upper left",
        bbox_to_anchor=(left - 0.01, 0.985),
        ncols=5,
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
        handlelength=2.2,
        borderaxespad=0,
    )
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def _line(axes: Any, values: Sequence[float], style: dict[str, Any], first: int = 0) -> None:
    """Over the units from `first` on; where a value is lost below the floor there is no line."""
    axes.plot(range(first, first + len(values)), [value if value > _FLOOR else math.nan for value in values], **style)


def _predict(axes: Any, found: dict[str, Any], end: float) -> None:
    """The products of lambdas that equation (8) has, from the end of every run back to its first unit."""
    units = found["units"]
    measured = [unit["shortcut_gradient"] / end for unit in units] + [1.0]
    for run in found["runs"]:
        numbers = range(run["first"], run["end"] + 1)
        products = [unit["product"] for unit in units[run["first"] : run["end"]]] + [1.0]
        values = [product * measured[run["end"]] for product in products]
        _line(axes, values, {"color": INK, "linewidth": 1.1, "linestyle": (0, (1, 2)), "zorder": 4}, first=numbers[0])


def _remark_on_nothing(axes: Any, colour: str) -> None:
    """A cross where the line of this colour begins, if that is not at the first unit: in front of it the gradient is zero."""
    (line,) = [line for line in axes.get_lines() if line.get_color() == colour]
    first, value = next((x, y) for x, y in zip(*line.get_data(), strict=True) if not math.isnan(y))
    if first:
        axes.plot([first], [value], "x", color=colour, markersize=6, markeredgewidth=1.6, zorder=5)
        where = {"textcoords": "offset points", "xytext": (-7, 0), "ha": "right", "va": "center"}
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        axes.annotate("nothing gets past", (first, value), color=colour, fontsize=8.5, bbox=ground, **where)


def _dress(axes: Any, units: Sequence[dict[str, Any]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogFormatterMathtext, LogLocator, MaxNLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12) if high < _DECADES * low else LogLocator(numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}") if high < _DECADES * low else LogFormatterMathtext())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlim(0, len(units))
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for before, after in pairwise(units):
        if before["stage"] != after["stage"]:
            axes.axvline(after["index"], color=FAINT, linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
    axes.tick_params(labelsize=8.5, colors=FAINT)
    axes.tick_params(which="both", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
