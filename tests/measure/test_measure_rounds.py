"""Interleaved rounds under a clock that the test holds in its hand."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from shoal.errors import ConfigError
from shoal.measure import clock_timer, time_rounds
from shoal.measure.ratio import unsteady
from shoal.measure.rounds import round_order


class World:
    """A clock, and calls that make it advance by what they cost."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def call(self, name: str, cost: float | Callable[[float], float]) -> Callable[[], None]:
        def run() -> None:
            self.log.append(name)
            self.now += cost(self.now) if callable(cost) else cost

        return run

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_every_round_holds_every_call_once_in_balanced_places(n: int) -> None:
    names = [f"m{i}" for i in range(n)]
    orders = [round_order(names, index) for index in range(2 * n)]
    assert all(sorted(order) == names for order in orders)
    for place in range(n):
        assert set(Counter(order[place] for order in orders).values()) == {2}
    neighbours = Counter(pair for order in orders for pair in pairwise(order))
    assert all(neighbours[a, b] == neighbours[b, a] for a, b in neighbours)


def test_rounds_are_interleaved() -> None:
    world = World()
    calls = {name: world.call(name, 0.01) for name in "ABC"}
    rounds = time_rounds(calls, warmup=0, repeats=6, min_seconds=0, timer=clock_timer(world.clock))
    timed = world.log[3:]  # one call each finds how many fill a sample: one
    assert rounds.inner == {"A": 1, "B": 1, "C": 1}
    assert [sorted(timed[i : i + 3]) for i in range(0, 18, 3)] == [["A", "B", "C"]] * 6
    assert all(len(times) == 6 for times in rounds.seconds.values())


def test_times_are_those_of_one_call() -> None:
    world = World()
    calls = {"fast": world.call("fast", 1e-4), "slow": world.call("slow", 2e-2)}
    rounds = time_rounds(calls, repeats=5, min_seconds=0, timer=clock_timer(world.clock))
    assert rounds.seconds["fast"] == pytest.approx([1e-4] * 5)
    assert rounds.seconds["slow"] == pytest.approx([2e-2] * 5)


@pytest.mark.parametrize("cost", [1e-6, 3e-5, 1e-3, 4.9e-3, 1.0])
def test_a_sample_is_long_enough_and_not_wasteful(cost: float) -> None:
    world = World()
    rounds = time_rounds(
        {"a": world.call("a", cost)}, repeats=1, min_seconds=0, timer=clock_timer(world.clock)
    )
    sample = rounds.inner["a"] * cost
    assert sample >= 5e-3 * (1 - 1e-9)
    assert sample <= max(2 * 5e-3, cost)


def test_a_slowing_machine_slows_both_of_a_pair() -> None:
    world = World()

    def drift(now: float) -> float:
        return 1.0 + now

    calls = {
        "a": world.call("a", lambda now: 0.01 * drift(now)),
        "b": world.call("b", lambda now: 0.02 * drift(now)),
    }
    rounds = time_rounds(calls, repeats=40, min_seconds=0, timer=clock_timer(world.clock))
    a, b = rounds.seconds["a"], rounds.seconds["b"]
    assert b[-1] > 2 * b[0]
    assert [y / x for x, y in zip(a, b, strict=True)] == pytest.approx([2.0] * 40, rel=0.04)


@pytest.mark.parametrize(
    ("repeats", "low", "high", "rounds"),
    [
        (10, 0.0, 100.0, 10),  # as many as asked
        (10, 6.0, 100.0, 60),  # more, until the least time is reached
        (50, 0.0, 2.0, 16),  # fewer, when the time is up (0.4 s went into warm-up)
        (50, 0.0, 0.1, 3),  # but three at least
    ],
)
def test_limits(repeats: int, low: float, high: float, rounds: int) -> None:
    world = World()
    found = time_rounds(
        {"a": world.call("a", 0.1)},
        repeats=repeats,
        min_seconds=low,
        max_seconds=high,
        timer=clock_timer(lambda: round(world.now, 9)),
    )
    assert abs(len(found.seconds["a"]) - rounds) <= 1  # sums of 0.1 are not exact
    assert len(found.seconds["a"]) >= 3


def test_a_measurement_that_was_disturbed_is_repeated() -> None:
    world, doubts = World(), iter(["the machine was busy", ""])
    found = time_rounds(
        {"a": world.call("a", 0.1)},
        warmup=0, repeats=10, min_seconds=0, attempts=3,
        timer=clock_timer(world.clock), watch=lambda: lambda: next(doubts),
    )  # fmt: skip
    assert found.doubt == ""
    assert found.calm
    assert len(found.seconds["a"]) == 10
    assert len(world.log) == 1 + 2 * 10


def test_one_that_calms_down_is_trusted() -> None:
    world = World()
    cost = {"a": lambda now: 0.3 if 0.8 <= now < 1.6 else 0.1}  # a burst while it is first measured
    found = time_rounds(
        {"a": world.call("a", cost["a"])},
        warmup=0, repeats=20, min_seconds=0, attempts=3, timer=clock_timer(world.clock),
    )  # fmt: skip
    assert found.calm
    assert found.seconds["a"] == pytest.approx([0.1] * 20)
    assert len(world.log) == 1 + 2 * 20


def test_one_unsteady_call_of_many_is_no_reason_to_repeat_all() -> None:
    world = World()
    calls = {name: world.call(name, 0.1) for name in "ABCDEFG"}
    costs = iter([0.1] * 17 + [0.13] * 100)
    calls["H"] = world.call("H", lambda now: next(costs))
    found = time_rounds(
        calls, warmup=0, repeats=20, min_seconds=0, attempts=2, timer=clock_timer(world.clock)
    )
    assert found.calm
    assert unsteady(found.blocks["H"])
    assert len(world.log) == 8 * (1 + 20)


def test_what_stays_disturbed_is_the_fastest_attempt_and_says_so() -> None:
    world, doubts = World(), iter(["first", "second", "third"])
    costs = iter([0.1] + [0.3] * 5 + [0.2] * 5 + [0.4] * 5)
    found = time_rounds(
        {"a": world.call("a", lambda now: next(costs))},
        warmup=0, repeats=5, min_seconds=0, attempts=3,
        timer=clock_timer(world.clock), watch=lambda: lambda: next(doubts),
    )  # fmt: skip
    assert found.doubt == "second"
    assert not found.calm
    assert found.seconds["a"] == pytest.approx([0.2] * 5)


@pytest.mark.parametrize(("attempts", "high", "calls"), [(1, 100.0, 11), (3, 2.5, 21)])
def test_repeats_have_limits(attempts: int, high: float, calls: int) -> None:
    world = World()
    found = time_rounds(
        {"a": world.call("a", 0.1)},
        warmup=0, repeats=10, min_seconds=0, max_seconds=high, attempts=attempts,
        timer=clock_timer(world.clock), watch=lambda: lambda: "busy",
    )  # fmt: skip
    assert found.doubt == "busy"
    assert len(world.log) == calls


def test_a_calm_machine_is_measured_once() -> None:
    world = World()
    time_rounds(
        {"a": world.call("a", 0.1)},
        warmup=0, repeats=10, min_seconds=0, attempts=3,
        timer=clock_timer(world.clock), watch=lambda: lambda: "",
    )  # fmt: skip
    assert len(world.log) == 11


def test_the_device_is_waited_for_on_both_sides() -> None:
    log: list[str] = []
    timer = clock_timer(lambda: log.append("clock") or 0.0, lambda: log.append("wait"))
    timer(lambda: log.append("call"), 2)
    assert log == ["wait", "clock", "call", "call", "wait", "clock"]


def test_the_garbage_collector_rests_and_comes_back() -> None:
    states = []
    time_rounds(
        {"a": lambda: states.append(gc.isenabled())},
        warmup=0,
        repeats=3,
        min_seconds=0,
        timer=lambda call, inner: (call(), 1.0)[1],
    )
    assert not any(states)
    assert gc.isenabled()


def test_senseless_limits_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to time"):
        time_rounds({})
    with pytest.raises(ConfigError, match="repeats is 0: give at least 1"):
        time_rounds({"a": int}, repeats=0)
    with pytest.raises(ConfigError, match="attempts is 0: give at least 1"):
        time_rounds({"a": int}, attempts=0)
    with pytest.raises(ConfigError, match="min_seconds"):
        time_rounds({"a": int}, min_seconds=2, max_seconds=1)
