"""Interleaved timing, on a clock that the tests move."""

import gc

import pytest

from fused_preact.bench import timing


class Clock:
    """Stands in for the `time` module; work moves it."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def perf_counter(self):
        return self.now

    def work(self, name, *milliseconds):
        durations = iter(milliseconds)
        last = 0.0

        def call():
            nonlocal last
            last = next(durations, last)
            self.calls.append(name)
            self.now += last * 1e-3

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_quartiles_by_hand():
    assert timing.quartiles([5.0, 1.0, 4.0, 2.0, 3.0]) == (3.0, 2.0, 4.0)
    assert timing.quartiles([1.0, 2.0]) == (1.5, 1.25, 1.75)
    assert timing.quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_warm_up_does_not_count(clock):
    result = timing.interleaved({"a": clock.work("a", 900, 800, 30, 50, 40)}, rounds=3, warmup=2)
    assert result["a"] == pytest.approx((40, 35, 45))


def test_functions_take_turns_and_every_round_starts_with_another_one(clock):
    functions = {name: clock.work(name, 30) for name in "abc"}
    timing.interleaved(functions, rounds=4, warmup=1)
    assert "".join(clock.calls) == "abc" + "abc" + "bca" + "cab" + "abc"


def test_what_each_round_begins_with_is_not_timed(clock):
    begin = clock.work("-", 5)
    result = timing.interleaved({name: clock.work(name, 30) for name in "ab"}, rounds=3, warmup=1, each_round=begin)
    assert "".join(clock.calls) == "ab" + "-ab" + "-ba" + "-ab"
    assert result["a"] == result["b"] == pytest.approx((30, 30, 30))


def test_short_functions_are_repeated_and_reported_by_call(clock):
    result = timing.interleaved({"short": clock.work("short", 3), "long": clock.work("long", 100)}, rounds=2, warmup=1, sample_ms=20)
    assert clock.calls.count("short") == 1 + 2 * 7
    assert clock.calls.count("long") == 1 + 2
    assert result["short"].median == pytest.approx(3)
    assert result["long"].median == pytest.approx(100)


def test_no_garbage_is_collected_while_the_clock_runs(clock):
    states = []
    timing.interleaved({"a": lambda: states.append(gc.isenabled()) or clock.work("a", 30)()}, rounds=2, warmup=1)
    assert states == [True, False, False]
    assert gc.isenabled()
