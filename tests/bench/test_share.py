"""Shares of a step, on a clock that the backends move."""

from types import SimpleNamespace

import pytest

from fused_preact import backends
from fused_preact.backends import eager, register
from fused_preact.bench import share
from fused_preact.bench.share import shares
from fused_preact.bench.variants import Config, batch, build, common_weights
from fused_preact.ops import unit as composed


class Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def takes(self, seconds, then=lambda *args: None):
        def call(*args):
            self.now += seconds
            return then(*args)

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(share, "time", clock)
    return clock


@pytest.fixture
def registered(monkeypatch):
    """Registers backends that are the whole table of the CPU."""
    monkeypatch.setattr(backends, "_registered", dict(backends._registered))
    monkeypatch.setitem(backends.PREFERENCE, "cpu", ())

    def put(**found):
        for name, functions in found.items():
            register(name, SimpleNamespace(**functions))
        backends.PREFERENCE["cpu"] = tuple(found)
        return [backends.backend(name) for name in found]

    yield put
    for cached in (backends.choose, backends.choose_unit):
        cached.cache_clear()


def test_only_outermost_calls_count(clock, registered):
    inner = {"bn_relu": clock.takes(2)}
    own, other = registered(own={}, other=inner)
    own.bn_stats = clock.takes(3, lambda: other.bn_relu())
    own.unit_fwd = clock.takes(1, lambda: own.bn_stats())

    def step():
        clock.now += 4
        own.unit_fwd()
        own.bn_stats()
        other.bn_relu()
        clock.now += 3

    # 4 + (1 + 3 + 2) + (3 + 2) + 2 + 3
    assert shares(step) == {"own": 11 / 20, "other": 2 / 20, "torch": 7 / 20}


def test_what_is_no_call_of_the_contract_is_torch(clock, registered):
    (own,) = registered(own={"why_not": clock.takes(1), "bn_relu": clock.takes(3)})
    assert shares(lambda: (own.why_not(), own.bn_relu())) == {"own": 0.75, "torch": 0.25}


def test_a_backend_that_is_not_there_has_no_share(clock, registered, monkeypatch):
    (own,) = registered(own={"bn_relu": clock.takes(1)})
    monkeypatch.setattr(share, "backend", lambda name: own if name == "own" else "it is on holiday")
    backends.PREFERENCE["cpu"] = ("away", "own")
    assert shares(lambda: own.bn_relu()) == {"own": 1.0, "torch": 0.0}


def test_the_backend_insisted_on_is_the_only_one(clock, registered):
    own, _ = registered(own={"bn_relu": clock.takes(1)}, other={"bn_relu": clock.takes(1)})
    assert shares(lambda: own.bn_relu(), "cpu", "own") == {"own": 1.0, "torch": 0.0}


def test_nothing_is_left_behind(clock, registered):
    (own,) = registered(own={"bn_relu": clock.takes(1), "bn_stats": clock.takes(1, lambda: 1 / 0)})
    before = dict(vars(own))
    shares(lambda: own.bn_relu())
    assert vars(own) == before
    with pytest.raises(ZeroDivisionError):
        shares(lambda: own.bn_stats())
    assert vars(own) == before


def test_a_gpu_has_none():
    assert shares(lambda: pytest.fail("was called"), "cuda:0") is None


PRIMITIVES = {name: function for name, function in vars(eager).items() if name.startswith("bn_")}
# Whole units, run as the primitives of the eager backend.
UNITS = {
    "unit_fwd": lambda *args: composed.unit_fwd(*args, "eager"),
    "unit_recompute": lambda *args: composed.unit_recompute(*args, None, "eager"),
    "unit_bwd": lambda *args: composed.unit_bwd(*args, "eager"),
}


@pytest.mark.parametrize("memory", ["layer", "unit", "segment"])
@pytest.mark.parametrize("whole", [False, True], ids=["primitives", "whole units"])
def test_no_call_of_a_training_step_is_missed(clock, registered, whole, memory):
    calls = []

    def slow(name, function):
        return clock.takes(1, lambda *args: calls.append(name) or function(*args))

    slowed = {name: slow(name, function) for name, function in (PRIMITIVES | (UNITS if whole else {})).items()}
    chosen = {"why_not": eager.why_not, "why_not_unit": lambda unit, case: None if whole else "no", "TWO_DGRADS": False}
    registered(slow=slowed | chosen)
    config = Config("preact_resnet56", 2, image_size=8, memory=memory)
    variant = build("fused", config, common_weights(config))
    images, labels = batch(config)

    def step():
        variant.step(images, labels)
        clock.now += len(calls)

    assert shares(step) == {"slow": 0.5, "torch": 0.5}
    units = {"unit_fwd", "unit_bwd"} | ({"unit_recompute"} if memory == "segment" else set())
    assert {name for name in calls if name.startswith("unit_")} == (units if whole else set())
    assert whole or {"bn_relu_conv2d_fwd", "bn_relu_conv2d_bwd"} <= set(calls)
