"""A run as a picture: error, loss and learning rate over the epochs."""

import math
import os
from collections.abc import Sequence
from typing import Any

from fused_preact._extras import require
from fused_preact._files import write_atomically
from fused_preact.train.record import History, StepRecord

# Okabe and Ito's blue and vermillion, which the colour-blind tell apart.
TRAIN, TEST, INK, FAINT, GRID = "#0072b2", "#d55e00", "#1f2933", "#6b7785", "#dfe4e8"

_DECADE = 10.0


def draw(history: History, title: str, path: str | os.PathLike[str]) -> None:
    """Draw `history` to the PNG file `path`, all of it or nothing: error on the left, loss above the learning rate on the right.

    The axes of x count epochs, or steps before the first epoch is over. Values that are not finite are gaps. Raises MissingExtraError
    without matplotlib, OSError if the file can't be written.
    """
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10.5, 4.6), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.052, 0.945, title, color=INK, fontsize=12.5, fontweight="bold", va="center")
    grid = figure.add_gridspec(2, 2, height_ratios=(3.6, 1), left=0.052, right=0.985, top=0.835, bottom=0.115, wspace=0.13, hspace=0.28)
    error = figure.add_subplot(grid[:, 0])
    loss = figure.add_subplot(grid[0, 1], sharex=error)
    rate = figure.add_subplot(grid[1, 1], sharex=error)

    steps, epochs = history
    steps_per_x = epochs[-1].step / epochs[-1].epoch if epochs else 1
    steps_x, epochs_x = [record.step / steps_per_x for record in steps], [record.epoch for record in epochs]
    for axes, heading in ((error, "error, %"), (loss, "cross-entropy"), (rate, "learning rate")):
        dress(axes, heading)

    test_error = [_percent(record.test_accuracy) for record in epochs]
    _line(error, epochs_x, [_percent(record.train_accuracy) for record in epochs], TRAIN, "train")
    _line(error, epochs_x, test_error, TEST, "test")
    _remark(error, epochs_x, test_error)
    _line(loss, epochs_x, [record.train_loss for record in epochs], TRAIN, "train")
    _line(loss, epochs_x, [record.test_loss for record in epochs], TEST, "test")
    _background(error, steps_x, [_percent(record.accuracy) for record in steps])
    _background(loss, steps_x, [record.loss for record in steps])
    if epochs:
        figure.legend(
            *error.get_legend_handles_labels(),
            loc="center right",
            bbox_to_anchor=(0.992, 0.945),
            ncols=2,
            frameon=False,
            fontsize=10,
            labelcolor="linecolor",
            handlelength=1.4,
        )

    rate.plot(steps_x or epochs_x, [record.lr for record in steps or epochs], color=INK, linewidth=1.2)
    drops = _drops(steps)
    ticks(rate, logarithmic=bool(drops), subs=(1,))
    for axes in (error, loss, rate):
        for i in drops:
            axes.axvline(steps_x[i], color=FAINT, linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
    error.set_xlim(0, max([*steps_x, *epochs_x], default=1) * 1.02)
    error.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    for axes in (error, rate):
        axes.set_xlabel("epoch" if epochs else "step", color=FAINT, fontsize=9)
    loss.tick_params(labelbottom=False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def _percent(accuracy: float) -> float:
    return 100 * (1 - accuracy)


def _drops(steps: Sequence[StepRecord]) -> list[int]:
    """Where the learning rate falls by more than half after it stood still, as that of a schedule in steps does."""
    triples = zip(steps, steps[1:], steps[2:], strict=False)
    return [i for i, (a, b, c) in enumerate(triples, 2) if math.isclose(a.lr, b.lr) and c.lr < b.lr / 2]


def dress(axes: Any, heading: str) -> None:
    """Heading, grid and spines as all pictures of training have them."""
    axes.set_title(heading, loc="left", color=INK, fontsize=10)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=FAINT)
    axes.tick_params(which="both", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def _line(axes: Any, x: Sequence[float], y: Sequence[float], color: str, label: str) -> None:
    marker = {"marker": "o", "markersize": 4} if len(x) <= 20 else {}
    axes.plot(x, y, color=color, linewidth=1.5, label=label, zorder=3, **marker)


def _remark(axes: Any, epochs: Sequence[int], test_error: Sequence[float]) -> None:
    """The best and the last test error in numbers above the panel, and a ring around the best."""
    finite = [(value, epoch) for value, epoch in zip(test_error, epochs, strict=True) if math.isfinite(value)]
    if finite:
        best, epoch = min(finite)
        axes.plot([epoch], [best], "o", markersize=8, markerfacecolor="none", markeredgecolor=TEST, markeredgewidth=1.2, zorder=4)
        remark = f"test: best {best:.2f} (epoch {epoch}), last {test_error[-1]:.2f}"
        axes.set_title(remark, loc="right", color=TEST, fontsize=9.5)


def _background(axes: Any, x: Sequence[float], y: Sequence[float]) -> None:
    """Single steps, faint behind the lines of `axes`, which decide the scale: logarithmic if they fall by more than a decade.

    They stand alone, and clear, before the first epoch is over.
    """
    values = [value for line in axes.get_lines() for value in line.get_ydata() if math.isfinite(value)]
    axes.plot(x, y, color=TRAIN, linewidth=0.6 if values else 1.2, alpha=0.3 if values else 1.0, zorder=1.5)
    everything = [value for value in (*values, *y) if math.isfinite(value)]
    lowest = min((value for value in values or everything if value > 0), default=None)
    if lowest is None:
        axes.set_ylim(0, 1)
        return
    logarithmic = max(values or everything) > _DECADE * lowest
    ticks(axes, logarithmic)
    if logarithmic:
        axes.set_ylim(lowest / 1.3, max(everything) * 1.3)
    else:
        axes.set_ylim(0, max(everything) * 1.05)


def ticks(axes: Any, logarithmic: bool, subs: tuple[int, ...] = (1, 2, 5)) -> None:
    """Plain numbers at `subs` of every decade on a logarithmic axis of y; a linear one begins at 0."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not logarithmic:
        axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=15))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
