"""The report as a picture."""

import os
from typing import Any

from fused_preact._files import write_atomically
from fused_preact.bench.machine import summary
from fused_preact.bench.report import title

ACCENT, GREY, INK, FAINT = "#d1495b", "#a9b4c2", "#1f2933", "#6b7785"


def require_matplotlib() -> None:
    """Raise ImportError, with a sentence that says what to install, if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise ImportError("plotting needs matplotlib, which is not installed; pip install 'fused-preact[train]'") from None


def write_plot(report: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw step time, saved bytes and peak bytes of each variant to the PNG file `path`, all of it or nothing."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    variants, ratios = report["variants"], report["ratios"]
    names = list(variants)
    figure = Figure(figsize=(11.0, 1.75 + 0.42 * len(names)), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    inch = 1 / figure.get_figheight()
    figure.subplots_adjust(left=0.075, right=0.985, top=1 - 0.95 * inch, bottom=0.5 * inch, wspace=0.08)
    headline, _, method = title(report["config"]).partition("; ")
    figure.text(0.012, 1 - 0.28 * inch, headline, color=INK, fontsize=11.5, fontweight="bold", va="center")
    figure.text(0.012, 0.2 * inch, f"{method}; {summary(report['machine'])}", color=FAINT, fontsize=7.5, va="center")

    step = [variants[name]["step_ms"] for name in names]
    medians = [quartiles["median"] for quartiles in step]
    spread = [[q["median"] - q["q1"] for q in step], [q["q3"] - q["median"] for q in step]]
    saved = [variants[name]["saved_bytes"] / 1e6 for name in names]
    peak = [variants[name]["peak_bytes"] / 1e6 for name in names]
    of_peak = {name: f"{fraction:.0%}" for name in names if (fraction := variants[name].get("of_fma_peak")) is not None}
    panels = (
        (
            "step time, ms" + (", and share of the FMA peak" if of_peak else ""),
            medians,
            spread,
            {name: f"fused {ratio:.2f}x as fast" for name, ratio in ratios["step"].items()},
        ),
        ("saved for backward, MB", saved, None, {name: f"fused {ratio:.2f} of it" for name, ratio in ratios["saved"].items()}),
        ("peak memory, MB", peak, None, {name: f"fused {ratio:.2f} of it" for name, ratio in ratios["peak"].items()}),
    )
    subplots = figure.subplots(1, 3, sharey=True)
    for axes, panel in zip(subplots, panels, strict=True):
        _draw(axes, names, *panel)
    for i, name in enumerate(names):
        inside = {"textcoords": "offset points", "xy": (0, i), "xytext": (5, 0), "va": "center"}
        subplots[0].annotate(of_peak.get(name, ""), color="white" if name == "fused" else INK, fontsize=8, **inside)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def _draw(axes: Any, names: list[str], heading: str, values: list[float], spread: list[list[float]] | None, notes: dict[str, str]) -> None:
    colours = [ACCENT if name == "fused" else GREY for name in names]
    axes.barh(names, values, height=0.62, color=colours)
    if spread:
        axes.errorbar(values, names, xerr=spread, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
    ends = [value + (spread[1][i] if spread else 0) for i, value in enumerate(values)]
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        beside = {"textcoords": "offset points", "xy": (ends[i], i)}
        align = "bottom" if name in notes else "center"
        axes.annotate(f"{value:,.1f}", xytext=(6, 0), va=align, color=INK, fontsize=9.5, fontweight="bold", **beside)
        axes.annotate(notes.get(name, ""), xytext=(6, -1), va="top", color=FAINT, fontsize=8, **beside)
    axes.set_xlim(0, max(ends) * 1.45)
    axes.set_title(heading, loc="left", color=INK, fontsize=9.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelsize=9.5, labelcolor=INK)
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(FAINT)
