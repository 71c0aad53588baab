import math
import sys
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from fused_preact._extras import MissingExtraError
from fused_preact.train.curves import TEST, TRAIN, draw
from fused_preact.train.record import History
from tests.train.histories import cut, history


@pytest.fixture
def figure(monkeypatch, tmp_path):
    """Draws a history, without warnings, and gives the Figure."""
    drawn, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: (drawn.append(self), savefig(self, *args, **kwargs)))

    def make(records):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw(records, "a title", tmp_path / "curves.png")
        assert image.imread(tmp_path / "curves.png").shape[2] == 4
        return drawn[-1]

    return make


def line(axes, label):
    (found,) = [line for line in axes.get_lines() if line.get_label() == label]
    return np.asarray(found.get_xdata()), np.asarray(found.get_ydata())


@pytest.mark.parametrize(
    "records",
    [
        pytest.param(history(200), id="200-epochs"),
        pytest.param(history(1), id="one-epoch"),
        pytest.param(cut(history(1), 15), id="no-epoch"),
        pytest.param(History([], []), id="nothing"),
        pytest.param(History([], history(3).epochs), id="no-steps"),
        pytest.param(history(4, lost_after=30), id="nan"),
        pytest.param(history(2, lost_after=0), id="nothing-but-nan"),
        pytest.param(History([], [e._replace(test_accuracy=1.0, train_accuracy=1.0, lr=0.0) for e in history(3).epochs]), id="all-right"),
    ],
)
def test_every_history_can_be_drawn(figure, records):
    error, loss, rate = figure(records).axes
    assert [axes.get_title(loc="left") for axes in (error, loss, rate)] == ["error, %", "cross-entropy", "learning rate"]
    assert error.get_xlabel() == ("epoch" if records.epochs else "step")


def test_the_lines_are_the_records(figure):
    records = history(5)
    error, loss, rate = figure(records).axes
    for axes, label, expected in (
        (error, "train", [100 * (1 - record.train_accuracy) for record in records.epochs]),
        (error, "test", [100 * (1 - record.test_accuracy) for record in records.epochs]),
        (loss, "train", [record.train_loss for record in records.epochs]),
        (loss, "test", [record.test_loss for record in records.epochs]),
    ):
        x, y = line(axes, label)
        assert x.tolist() == [1, 2, 3, 4, 5]
        assert y == pytest.approx(expected)
    x, y = rate.get_lines()[0].get_data()
    assert np.asarray(x) == pytest.approx([record.step / 20 for record in records.steps])
    assert list(y) == [record.lr for record in records.steps]


def test_the_best_and_the_last_error_are_told(figure):
    error, *_ = figure(history(4)).axes
    assert error.get_title(loc="right") == "test: best 26.67 (epoch 3), last 32.00"


def test_a_lost_loss_is_a_gap(figure):
    _, loss, _ = figure(history(4, lost_after=30)).axes
    assert [math.isnan(y) for y in line(loss, "train")[1]] == [False, True, True, True]


def test_drops_of_the_learning_rate_run_through_all_panels(figure):
    for axes in figure(history(6)).axes:
        dotted = [line.get_xdata()[0] for line in axes.get_lines() if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]
        assert dotted == pytest.approx([45 / 20, 85 / 20])


def test_a_smooth_learning_rate_has_no_drops_and_a_linear_axis(figure):
    records = history(4)
    smooth = History([record._replace(lr=0.1 * 0.3**i) for i, record in enumerate(records.steps)], records.epochs)
    *_, rate = figure(smooth).axes
    assert len(rate.get_lines()) == 1
    assert rate.get_yscale() == "linear"


@pytest.mark.parametrize(
    ("epochs", "scale"), [pytest.param(3, "linear", id="within-a-decade"), pytest.param(50, "log", id="more-than-a-decade")]
)
def test_the_axis_suits_the_fall(figure, epochs, scale):
    error, loss, _ = figure(history(epochs)).axes
    assert (error.get_yscale(), loss.get_yscale()) == (scale, scale)
    for axes, label in ((error, "train"), (error, "test"), (loss, "test")):
        low, high = axes.get_ylim()
        assert low < line(axes, label)[1].min() < line(axes, label)[1].max() < high


def test_the_two_colours_differ_in_lightness_for_those_who_see_no_hue():
    def lightness(colour):
        return np.dot(matplotlib.colors.to_rgb(colour), (0.2126, 0.7152, 0.0722))

    assert abs(lightness(TRAIN) - lightness(TEST)) > 0.05


def test_pyplot_and_its_windows_stay_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    draw(history(1), "a title", tmp_path / "curves.png")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"^training needs matplotlib, .*pip install 'fused-preact\[train\]'$"):
        draw(history(1), "a title", tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())
