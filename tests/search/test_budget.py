"""A search ends within its hours, last training and all; by a clock that only the test moves."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.network import Network
from shoal.search import budget, coach, compress, engine, notebook
from shoal.search.budget import Budget, Clock
from shoal.search.options import SearchOptions
from shoal.search.records import Metrics, Result, Step
from shoal.search.setup import Listener
from small_runs import FakeGauge, digits, run


class FakeClock:
    """Seconds that pass when the test says so."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        fake = SimpleNamespace(monotonic=lambda: self.now, perf_counter=lambda: self.now)
        for module in (budget, coach, compress, engine, notebook):
            patch.setattr(module, "time", fake)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    return FakeClock(monkeypatch)


class Slow(FakeGauge):
    """Measuring takes 20 seconds, the end 140; a removal costs half a point."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(digits().val)
        self.clock = clock

    def quality(self, network: Network, data: Any) -> float:
        return 90.0 - 0.5 * sum(site.linearized is not None for site in network.sites)

    def measure(self, network: Network) -> Any:
        self.clock.now += 20.0
        return super().measure(network)

    def ending(self, *given: Any) -> Any:
        self.clock.now += 140.0
        return super().ending(*given)


def timed(clock: FakeClock, hours: float, out: Path | None = None, **options: Any) -> Result:
    """Search where each training takes 600 seconds."""

    def fit(network: Network) -> None:
        clock.now += 600.0

    given = {"max_drop": 5.0, "how": "identity", "final_epochs": 1, "gauge": Slow(clock), **options}
    return run(out, fit=fit, hours=hours, **given)


@pytest.mark.parametrize(
    ("minutes", "steps", "last"),
    [(80, 4, 1), (47, 3, 1), (35, 2, 1), (24, 1, 1), (20, 1, 0)],
)
def test_it_ends_within_the_hours(clock: FakeClock, minutes: int, steps: int, last: int) -> None:
    result = timed(clock, minutes / 60)
    assert clock.now <= 60 * minutes
    assert sum(not s.ended for s in result.steps) == 1 + steps
    assert sum(bool(s.ended) for s in result.steps) == last
    whole = "nothing is left to remove" if steps == 4 else f"the budget of {minutes / 60:g} hours"
    assert result.stopped == whole
    plan = next(note for note in result.notes if note.startswith(("the budget", "a single")))
    if steps > 1:
        assert "steps of up to 10 min" in plan
        assert "last trainings (1 epochs of 10 min) and the end" in plan
    else:
        assert "a single step took 10 min, and the budget of" in plan
    untrained = any("leaves no time for the last training" in note for note in result.notes)
    assert untrained == (last == 0)


def test_what_an_interrupted_call_worked_counts_and_the_time_between_does_not(
    clock: FakeClock, tmp_path: Path
) -> None:
    class Killed(Slow):
        def quality(self, network: Network, data: Any) -> float:
            if clock.now > 1200.0:
                raise KeyboardInterrupt
            return super().quality(network, data)

    with pytest.raises(KeyboardInterrupt):
        timed(clock, 47 / 60, tmp_path / "run", gauge=Killed(clock))
    assert float((tmp_path / "run" / "seconds.txt").read_text()) == 640.0
    clock.now = 1e6
    result = timed(clock, 47 / 60, tmp_path / "run")
    assert len(result.steps) == 5
    again = timed(clock, 47 / 60, tmp_path / "run")
    assert again.stopped == result.stopped == f"the budget of {47 / 60:g} hours"


class Batches(Listener):
    """Each batch takes 20 seconds; the call may end after an epoch."""

    def __init__(self, clock: FakeClock, ends: bool) -> None:
        self.clock, self.ends = clock, ends

    def batch(self, report: Any, epochs: int) -> None:
        self.clock.now += 20.0

    def epoch(self, report: Any, epochs: int) -> None:
        if self.ends:
            raise KeyboardInterrupt


def test_a_step_takes_the_seconds_of_all_calls(
    clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = import_module("shoal.training.fit")
    monkeypatch.setattr(trainer, "time", budget.time)
    options: dict[str, Any] = {"dense_epochs": 2, "epochs": 3, "remove": 1, "criterion": "last"}
    for _ in range(4):  # two epochs of the dense network, and two of the step
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, listener=Batches(clock, ends=True), **options)
        clock.now += 1e6
    result = run(tmp_path, listener=Batches(clock, ends=False), **options)
    assert [step.seconds for step in result.steps] == [200.0, 300.0]
    assert [step.epoch_seconds for step in result.steps] == [100.0, 100.0]


@pytest.mark.parametrize(
    ("seconds", "options", "epochs"),
    [
        # A step of three epochs, of which one is done, and 400 s left for 300 and the end's 150.
        (600, {"epochs": 3}, [1, 3]),
        # A last training of three epochs, likewise, with 360 s left.
        (660, {"epochs": 1, "final_epochs": 3}, [1, 1, 3]),
    ],
)
def test_what_was_begun_goes_on_though_it_would_not_be_begun_any_more(
    clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    seconds: float, options: dict[str, Any], epochs: list[int],
) -> None:  # fmt: skip
    trainer = import_module("shoal.training.fit")
    monkeypatch.setattr(trainer, "time", budget.time)
    given: dict[str, Any] = {"dense_epochs": 1, "remove": 1, "criterion": "last", **options}
    given |= {"max_drop": 100.0, "hours": seconds / 3600}
    for _ in range(sum(epochs) - 1):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, listener=Batches(clock, ends=True), **given)
    result = run(tmp_path, listener=Batches(clock, ends=False), **given)
    assert [step.epochs for step in result.steps] == epochs
    assert not any("no time" in note or "room for a step" in note for note in result.notes)


def test_hours_that_allow_no_step_say_so(clock: FakeClock) -> None:
    result = timed(clock, 12 / 60, dense_epochs=1)
    assert [step.operation for step in result.steps] == ["dense"]
    assert any("has no room for a step: raise hours" in note for note in result.notes)


def test_more_hours_let_a_run_without_a_last_training_go_on(
    clock: FakeClock, tmp_path: Path
) -> None:
    short = timed(clock, 0.5, tmp_path / "run", final_epochs=0)
    assert short.removed == 2
    assert timed(clock, 0.5, tmp_path / "run", final_epochs=0).stopped == short.stopped
    assert timed(clock, 2.0, tmp_path / "run", final_epochs=0).removed == 4


def step_of(number: int, quality: float, **changes: Any) -> Step:
    return replace(
        Step(
            number, "drop", Metrics(quality, None, 1, 1, 1, 1.0), 4, 1, 16.0, 1.0 + number,
            1.0 + number, 1.0 + number, within=quality >= 89.0, epoch_seconds=10.0,
        ),
        **changes,
    )  # fmt: skip


@pytest.mark.parametrize(("found", "reserved"), [(0, 1), (1, 1), (2, 2), (5, 2)])
def test_time_is_kept_for_two_last_trainings(clock: FakeClock, found: int, reserved: int) -> None:
    options = SearchOptions(hours=1.0, final_epochs=10, max_drop=1.0, slack=9.0)
    steps = [step_of(0, 90.0), *(step_of(n + 1, 89.0 - n / 2) for n in range(found))]
    steps = steps if found else [*steps, step_of(1, 50.0)]
    plan = Budget(options, Clock())
    assert plan.last_training(steps) == 106.0  # ten epochs, and six seconds that a step measures
    assert plan.reserved(steps) == 106.0 * reserved
    clock.now = 3600.0 - 150.0 - 106.0 * reserved - 16.0
    assert not plan.why_stop(steps)
    clock.now += 1.0
    assert plan.why_stop(steps) == "the budget of 1 hours"


def test_before_the_first_step_its_epochs_and_the_last_training_are_counted(
    clock: FakeClock,
) -> None:
    options = SearchOptions(hours=0.1, final_epochs=3, epochs=5)
    plan, dense = Budget(options, Clock()), [step_of(0, 90.0)]
    clock.now = 360.0 - 90.0 - 50.0 - 30.0  # of 0.1 hours the end takes a quarter at most
    assert not plan.why_stop(dense)
    clock.now += 1.0
    assert plan.why_stop(dense)


def test_a_last_training_that_was_made_tells_how_long_the_next_one_takes(clock: FakeClock) -> None:
    plan = Budget(SearchOptions(hours=1.0, final_epochs=10), Clock())
    made = step_of(2, 89.5, ended="all is gone", begun_from=1, epochs=10, seconds=83.0,
                   epoch_seconds=8.0)  # fmt: skip
    assert plan.last_training([step_of(0, 90.0), step_of(1, 89.5), made]) == 83.0


@pytest.mark.parametrize(
    ("minutes", "trained"), [(100, [4, 2, 1]), (79, [4, 2, 1]), (68, [4, 2]), (57, [3, 2])]
)
def test_candidates_are_bisected_while_there_is_time(
    clock: FakeClock, minutes: int, trained: list[int]
) -> None:
    """None of the last trainings helps; the fastest candidate is trained first."""
    result = timed(clock, minutes / 60, max_drop=0.4, slack=9.0)
    assert [s.begun_from for s in result.steps if s.ended] == trained
    assert clock.now <= 60 * minutes
    late = any("leaves no time for another last training" in note for note in result.notes)
    assert late == (minutes < 79)


def test_a_clock_whose_file_is_damaged_goes_by_the_steps(tmp_path: Path) -> None:
    (tmp_path / "seconds.txt").write_text("soon")
    damaged = Clock(tmp_path / "seconds.txt")
    damaged.at_least(50.0)
    assert 50.0 <= damaged.seconds < 60.0
