"""Measured tiles: found by `autotune`, kept in a file, used from then on, and ignored with one warning when the file is no good."""

import json
import warnings

import pytest
import torch

import fused_preact as fp
from fused_preact import PreActBottleneck, tune
from fused_preact.backends.triton import conv, tiles, tuning
from fused_preact.backends.triton.tiles import Tile
from tests.testing.cases import device_of

DEVICE = torch.device(device_of("triton"))
HERE = tuning.environment_of(DEVICE)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with tuning.trying({}):
        yield


def problem(x=(2, 16, 8, 8), weight=(16, 16, 3, 3), padding=(1, 1)):
    return conv.problem(x, weight, ((1, 1), padding, (1, 1), 1), torch.bfloat16, "ieee", 90)


@pytest.mark.parametrize("kind", ["fwd", "dgrad", "wgrad", "narrow"])
def test_the_short_list_begins_with_the_default(kind):
    p = problem(weight=(16, 16, 1, 1), padding=(0, 0))
    listed = tiles.candidates(kind, p)
    assert listed[0] == tuning.tile(kind, p)
    assert 4 < len(listed) <= 10
    assert len(set(listed)) == len(listed)


def test_choices_survive_the_file():
    p, other = problem(), problem((4, 16, 8, 8))
    choices = {
        tuning.key("fwd", p): Tile(64, 16, 16, 4, 2),
        tuning.key("narrow", p): None,
        tuning.key("bwd by library", p): True,
    }
    path = tuning.save(HERE, choices)
    before = tuning.tile("fwd", other)
    tuning.load()
    assert tuning.tile("fwd", p) == Tile(64, 16, 16, 4, 2)
    assert tuning.materialises("bwd", p)
    assert not tuning.materialises("fwd", p)
    assert tuning.tile("fwd", other) == before
    tuning.save("another GPU", {tuning.key("fwd", other): Tile(128, 16, 16, 4, 2)})
    entries = json.loads(path.read_text())["entries"]
    assert set(entries) == {HERE, "another GPU"}
    assert len(entries[HERE]) == 3


GOOD = {"format": tuning.FORMAT, "entries": {HERE: {"fwd: x": [64, 16, 16, 4, 2, 1, 1]}}}


def broken(**changes):
    return json.dumps(GOOD | changes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"format": 1, "entries"',
        "[]",
        broken(format=0),
        broken(entries=[]),
        broken(entries={HERE: []}),
        broken(entries={HERE: {"fwd: x": [64, 16]}}),
        broken(entries={HERE: {"fwd: x": [64, 16, 16, 4, "2", 1, 1]}}),
        broken(entries={HERE: {"fwd: x": [64, 16, -16, 4, 2, 1, 1]}}),
        broken(entries={HERE: {"fwd: x": None}}),
        broken(entries={HERE: {"fwd by library: x": 1}}),
        broken(entries={HERE: {"nothing: x": True}}),
        broken(entries={"another GPU": {}}),
    ],
    ids=lambda text: text.replace(HERE, "here") or "empty",
)
def test_a_file_that_is_no_good_is_ignored_with_one_warning(text):
    path = tuning.cache_file()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    before = tuning.tile("fwd", problem())
    with pytest.warns(UserWarning, match="fused_preact ignores the tuning cache") as caught:
        tuning.load()
    assert len(caught) == 1
    assert tuning.tile("fwd", problem()) == before
    tuning.save(HERE, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuning.load()


def test_without_a_file_nothing_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuning.load()


def test_the_file_is_not_read_while_tracing(monkeypatch):
    tuning.save(HERE, {tuning.key("fwd", problem()): Tile(16, 16, 16, 4, 2)})
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    tuning.load()
    assert tuning.tile("fwd", problem()) != Tile(16, 16, 16, 4, 2)


def test_autotune(monkeypatch):
    """Finds the convolutions of a model, chooses for each, remembers, and leaves the model as it was."""
    monkeypatch.setattr(tune, "_ROUNDS", 1)
    monkeypatch.setattr(tiles, "candidates", lambda kind, p, all=tiles.candidates: all(kind, p)[:2])
    unit = PreActBottleneck(16, 4).to(DEVICE)
    x = torch.randn(1, 16, 4, 4, device=DEVICE)
    state = {name: value.clone() for name, value in unit.state_dict().items()}
    told = []
    with fp.use_backend("triton"):
        path = fp.autotune(unit, x, tell=told.append)
    assert path == tuning.cache_file()
    assert len(told) == 3
    assert unit.training
    assert all(torch.equal(value, state[name]) for name, value in unit.state_dict().items())
    choices = json.loads(path.read_text())["entries"][HERE]
    kinds = {name.partition(":")[0] for name in choices}
    assert {"fwd by library", "bwd by library"} <= kinds <= set(tuning.KINDS)
    with fp.use_backend("triton"):
        unit(x).sum().backward()


def test_a_candidate_that_breaks_drops_out(monkeypatch):
    p = problem((1, 16, 4, 4), (16, 16, 1, 1), (0, 0))
    good = {tuning.key("fwd", p): Tile(16, 16, 16, 4, 2)}

    def call():
        if tuning.tile("fwd", p).BM != 16:
            raise RuntimeError("out of resources")

    bad = {tuning.key("fwd", p): Tile(128, 16, 16, 4, 2)}
    assert tune._fastest(call, [bad, good, bad], torch.device("cpu")) == good
    assert tune._fastest(call, [bad], torch.device("cpu")) == {}


def test_autotune_refuses_in_a_sentence(monkeypatch):
    with pytest.raises(ValueError, match="expected one with fused convolutions that run on the triton backend, got none"):
        fp.autotune(torch.nn.Conv2d(3, 3, 1), torch.randn(1, 3, 4, 4))
    monkeypatch.setattr(tune, "backend", lambda name: "triton is not installed")
    with pytest.raises(ValueError, match="not usable: triton is not installed"):
        fp.autotune(PreActBottleneck(16, 4), torch.randn(1, 16, 4, 4))


@pytest.mark.parametrize(
    ("kind", "tile"),
    [
        ("wgrad", Tile(16, 16, 64, 4, 2, taps=2)),
        ("fwd", Tile(48, 16, 16, 4, 2)),
        ("fwd", Tile(64, 16, 16, 3, 2)),
        ("fwd", Tile(256, 16, 16, 4, 2)),
        ("narrow", Tile(64, 16, 16, 8, 2)),
        ("narrow", Tile(64, 16, 64, 8, 2, splits=64)),
    ],
    ids=["taps", "power-of-2", "warps", "rows", "channels", "splits"],
)
def test_a_tile_that_would_compute_something_else_is_not_used(kind, tile):
    p = problem() if kind != "narrow" else problem((1, 16, 8, 8), (33, 16, 1, 1), (0, 0))
    default = tuning.tile(kind, p)
    with tuning.trying({tuning.key(kind, p): tile}):
        assert tuning.tile(kind, p) == default


def test_every_candidate_fits():
    for weight, padding in (((16, 16, 3, 3), (1, 1)), ((16, 16, 1, 1), (0, 0)), ((256, 128, 1, 1), (0, 0))):
        p = problem((8, weight[1], 32, 32), weight, padding)
        for kind in ("fwd", "dgrad", "wgrad", "narrow"):
            assert all(tiles.fits(kind, p, tile) for tile in tiles.candidates(kind, p)), kind


@pytest.mark.parametrize("breaks", ["home", "permission", "nesting"])
def test_importing_survives_any_cache(breaks, monkeypatch):
    if breaks == "nesting":
        path = tuning.cache_file()
        path.parent.mkdir(parents=True)
        path.write_text("[" * 200_000)
    error = {"home": RuntimeError("no home"), "permission": PermissionError("no"), "nesting": None}[breaks]
    if error is not None:

        def broken():
            raise error

        monkeypatch.setattr(tuning, "cache_file", broken)
    with pytest.warns(UserWarning, match="ignores the tuning cache"):
        tuning.load()
