import warnings
from pathlib import Path
from statistics import median

import pytest
from matplotlib import image
from matplotlib.figure import Figure

from fused_preact.models.paper_rows import ROWS
from fused_preact.paper.ablate_curves import COLOURS, draw
from fused_preact.paper.ablate_report import Curve, Result
from fused_preact.train.config import TrainConfig

CURVES = [
    Curve(0, [4, 8, 12], [2.0, 1.0, 0.1], [80.0, 40.0, 2.0], None),
    Curve(1, [4, 8, 12], [2.2, 0.9, 0.2], [90.0, 30.0, 3.0], None),
    Curve(2, [4], [2.1], [85.0], "training diverged"),
]


OTHERS = [Curve(0, [4, 8, 12], [1.5, 1.2, 1.1], [70.0, 60.0, 55.0], None)]


def results(count, curves, others=None):
    """The first row with `curves`, and all other rows with `others`, by default the same."""
    first, *rest = list(ROWS.values())[:count]
    return [Result(row, TrainConfig(out=Path()), curves if row is first else others or curves) for row in (first, *rest)]


@pytest.fixture
def figure(monkeypatch, tmp_path):
    """Draws results, without warnings, and gives the Figure."""
    drawn, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: (drawn.append(self), savefig(self, *args, **kwargs)))

    def make(*asked):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw(results(*asked), "a title", tmp_path / "curves.png")
        assert image.imread(tmp_path / "curves.png").shape[2] == 4
        return drawn[-1]

    return make


def drawn(line):
    return list(line.get_xdata()), list(line.get_ydata())


@pytest.mark.parametrize(
    "curves", [CURVES, [Curve(0, [3], [2.0], [0.0], None)], [Curve(0, [], [], [], "training diverged")]], ids=["three", "one point", "none"]
)
@pytest.mark.parametrize("count", [1, len(COLOURS), len(COLOURS) + 1, len(ROWS)])
def test_every_number_of_rows_can_be_drawn(figure, count, curves):
    shown = [axes for axes in figure(count, curves).axes if axes.get_visible()]
    assert len(shown) == (2 if count <= len(COLOURS) else 2 * count)


def test_few_rows_share_a_panel_of_medians(figure):
    loss, error = figure(2, CURVES).axes
    assert [axes.get_title(loc="left") for axes in (loss, error)] == ["training loss", "test error, %"]
    for axes, values, style in ((loss, [2.1, 0.95, median([0.1, 0.2])], "--"), (error, [85.0, 35.0, 2.5], "-")):
        assert len(axes.get_lines()) == 2
        for line in axes.get_lines():
            x, y = drawn(line)
            assert x == [4, 8, 12]
            assert y == pytest.approx(values)
            assert (line.get_linestyle() == "-") == (style == "-")
    for axes, low, high in ((loss, 0.1, 2.2), (error, 2.0, 90.0)):
        for band in axes.collections:
            box = band.get_paths()[0].get_extents()
            assert (box.x0, box.x1, box.y0, box.y1) == pytest.approx((4, 12, low, high))
        below, above = axes.get_ylim()
        assert below < low < high < above


def test_many_rows_have_a_panel_each_beside_the_first(figure):
    panels = figure(len(COLOURS) + 1, CURVES).axes
    names = [axes.get_title(loc="left") for axes in panels if axes.get_title(loc="left")]
    assert names == list(ROWS)[: len(COLOURS) + 1]
    assert all(len(axes.get_lines()) == 2 for axes in panels if axes.get_visible())


def test_a_panel_has_the_rows_own_curves_over_those_of_the_first_in_grey(figure):
    panels = [axes for axes in figure(len(COLOURS) + 1, CURVES, OTHERS).axes if axes.get_visible()]
    for axes in panels[1 : len(COLOURS) + 1]:
        grey, own = axes.get_lines()
        assert drawn(grey)[1] == pytest.approx([2.1, 0.95, 0.15])
        assert drawn(own) == ([4, 8, 12], [1.5, 1.2, 1.1])
        assert grey.get_color() != own.get_color()
