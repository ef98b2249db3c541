"""Past the drop and back: the fastest network within it after training, by few trainings."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import small_runs
from shoal.errors import RunError
from shoal.measure import Ratio
from shoal.network import Network
from shoal.search.limits import candidates, fastest_that_holds, should_hold, slack, why_stop
from shoal.search.options import SearchOptions
from shoal.search.records import Metrics, Result, Step, chosen, lineage
from small_runs import FakeGauge, digits, facts, result_of, run

DENSE = 90.0


def step(number: int, quality: float, ratio: float = 1.0, **more: Any) -> Step:
    spread = more.pop("spread", 0.0)
    return Step(
        step=number,
        operation="linearize" if number else "dense",
        metrics=Metrics(quality, None, 100, 100, 5, 1.0),
        sites_left=10,
        seconds=1.0,
        latency_ratio=ratio,
        latency_ratio_low=ratio - spread,
        latency_ratio_high=ratio + spread,
        **{"epochs": 1, "within": quality >= DENSE - 1.0, **more},
    )


def history(*found: tuple[float, float]) -> list[Step]:
    """Return a dense network and steps of some qualities and latency ratios."""
    return [step(0, DENSE), *(step(n, q, r) for n, (q, r) in enumerate(found, start=1))]


# ---------------------------------------------------------------------- bisecting

points = st.floats(85.0, 91.0, allow_nan=False)
ratios = st.integers(90, 110).map(lambda value: value / 100)


@given(
    st.lists(st.tuples(points, ratios), max_size=12),
    st.floats(0, 6),
    st.floats(0.0, 4.0),
    st.sets(st.integers(0, 12)),
)
@settings(max_examples=150, deadline=None)
def test_the_fastest_that_training_brings_within_the_drop_is_found_by_few_trainings(
    found: list[tuple[float, float]], more: float, won: float, guessed: set[int]
) -> None:
    """Training makes of a faster network a worse one; nothing else is known of the steps."""
    options = SearchOptions(max_drop=1.0, slack=more, final_epochs=5)
    steps = history(*found)
    base = chosen(steps)
    hopeful = [
        s
        for s in steps[1:]
        if s == base
        or (
            not s.within
            and s.metrics.top1_val >= DENSE - 1.0 - more - 1e-9
            and (s.latency_ratio, s.step) > (base.latency_ratio, base.step)
        )
    ]
    order = candidates(options, steps)
    assert order == sorted(hopeful, key=lambda s: (s.latency_ratio, s.step))
    fastest_that_can = len(order) * won / 4.0
    asked: list[Step] = []

    def holds(one: Step) -> bool:
        asked.append(one)
        return order.index(one) < fastest_that_can

    fastest_that_holds(order, holds, lambda one: order.index(one) in guessed)
    held = [one for one in asked if order.index(one) < fastest_that_can]
    best = max((one for one in order if order.index(one) < fastest_that_can), key=order.index,
               default=None)  # fmt: skip
    assert (held[-1] if held else None) == best
    assert held == sorted(held, key=order.index)  # the last that holds is the result
    assert len(asked) == len(set(map(id, asked)))
    if order:
        assert asked[0] == order[-1]
        assert len(asked) <= math.ceil(math.log2(len(order))) + 2
    if len(asked) > 1:  # in the middle, or with the last of those behind it that are likely
        middle = (len(order) - 1) // 2
        assert order.index(asked[1]) == max(guessed & set(range(middle, len(order) - 1)) | {middle})


def test_the_second_training_is_of_the_fastest_that_the_first_makes_likely() -> None:
    options = SearchOptions(max_drop=1.0, slack=4.0, final_epochs=5)
    steps = history((89.9, 1.2), (87.4, 1.9), (86.6, 2.0), (86.2, 2.3))
    assert not should_hold(steps[3], options, steps)  # nothing is known yet
    steps.append(step(5, 88.8, 2.3, ended="the budget", begun_from=4, within=False))
    assert [s.step for s in steps[1:5] if should_hold(s, options, steps)] == [1, 2, 3]
    asked: list[int] = []

    def holds(one: Step) -> bool:
        asked.append(one.step)
        return one.step == 3

    fastest_that_holds(
        candidates(options, steps), holds, lambda one: should_hold(one, options, steps)
    )
    assert asked == [4, 3]  # bisecting would have asked for 2 in between


def test_a_step_whose_speed_cannot_be_told_from_an_earlier_one_is_the_deeper() -> None:
    options = SearchOptions(max_drop=1.0, slack=3.0, final_epochs=5)
    steps = [
        step(0, DENSE),
        step(1, 89.5, 1.20, spread=0.05),
        step(2, 88.5, 1.18, spread=0.05),  # not for certain slower than step 1
        step(3, 88.0, 1.60, spread=0.05),
        step(4, 87.5, 1.40, spread=0.05),  # slower than step 3
        step(5, 87.2, 1.00, spread=0.05),  # slower than step 1
        step(6, 80.0, 1.90, spread=0.05),  # too low
    ]
    assert [s.step for s in candidates(options, steps)] == [1, 2, 4, 3]


def test_a_step_that_a_busy_machine_timed_is_not_left_out_as_slower() -> None:
    options = SearchOptions(max_drop=1.0, slack=3.0, final_epochs=5)
    busy = replace(step(2, 88.5, 1.20, spread=0.05), latency_doubt="the machine was busy")
    steps = [step(0, DENSE), step(1, 89.5, 1.50, spread=0.05), busy]
    assert [s.step for s in candidates(options, steps)] == [1, 2]
    assert [s.step for s in candidates(options, [*steps[:2], replace(busy, latency_doubt="")])] == [
        1
    ]


def test_a_target_is_not_reached_by_a_clock_that_is_not_to_be_trusted() -> None:
    options = SearchOptions(max_drop=1.0, target_latency=0.5)
    steps = history((89.5, 3.0))
    assert why_stop(options, steps, 1) == "latency is 0.33 of dense's, 0.5 was the target"
    steps[1] = replace(steps[1], latency_doubt="the machine was busy")
    assert why_stop(options, steps, 1) == ""
    steps[1] = replace(steps[1], metrics=replace(steps[1].metrics, macs=40))
    assert (
        why_stop(options, steps, 1) == "the number of MACs is 0.40 of dense's, 0.5 was the target"
    )


# ---------------------------------------------------------------------- the slack


def test_the_slack_is_what_the_fine_tunings_of_the_run_win_back() -> None:
    options = SearchOptions(max_drop=1.0, final_epochs=10)
    steps = history((89.5, 1.1))
    assert slack(options, steps) == pytest.approx(1.0)  # nothing known: half of what is lost
    for before, after, expected in (
        (89.0, 89.2, 0.25),  # a fifth won back: 1.25 points would become 1
        (88.0, 89.2, 1.5),
        (80.0, 89.9, 2.0),  # never more than 2
        (89.0, 88.5, 0.0),
    ):
        steps[1] = step(1, after, top1_val_before=before)
        assert slack(options, steps) == pytest.approx(expected)
    shorter = SearchOptions(max_drop=1.0, final_epochs=1, epochs=4)
    steps[1] = step(1, 89.2, top1_val_before=88.0, epochs=4)
    assert slack(shorter, steps) == pytest.approx(0.15 / 0.85)  # a quarter of the epochs
    assert slack(SearchOptions(max_drop=1.0), steps) == 0.0
    assert slack(SearchOptions(max_drop=1.0, slack=0.7), steps) == 0.7


def test_the_search_stops_past_drop_and_slack_together() -> None:
    options = SearchOptions(max_drop=1.0, slack=1.5, final_epochs=5)
    assert why_stop(options, history((89.0, 1.1), (87.5, 1.2)), 2) == ""
    assert why_stop(options, history((89.0, 1.1), (87.4, 1.2)), 2) == (
        "validation accuracy is 2.60 points below dense, at most 1 allowed and 1.50 more for the "
        "last training to win back"
    )
    reached = SearchOptions(max_drop=1.0, slack=1.5, final_epochs=5, target_latency=0.5)
    assert "0.5 was the target" in why_stop(reached, history((88.0, 2.0)), 1)


# ---------------------------------------------------------------------- whole searches


class Scripted(FakeGauge):
    """A gauge whose figures are scripted: by the sites that are gone, and after a last training."""

    def __init__(self, loop: list[float], last: list[float]) -> None:
        super().__init__(digits().val)
        self.loop, self.last = loop, last

    def quality(self, network: Network, data: Any) -> float:
        trained = bool(network.get_buffer("bn1.running_mean").eq(7.0).all())
        return (self.last if trained else self.loop)[gone(network)]

    def ratio(self, dense: Network, network: Network) -> Ratio:
        return Ratio.of([1.0 + 0.1 * gone(network)], [1.0])


def gone(network: Network) -> int:
    return sum(site.linearized is not None for site in network.sites)


def scripted(out: Path | None, **options: Any) -> Result:
    """A search of four steps of which the second is the last within the drop before training."""
    seen: dict[int, int] = {}

    def fit(network: Network) -> None:
        count = gone(network)
        seen[count] = seen.get(count, 0) + 1
        # A search comes to a network once; what is trained again is trained for the last time.
        if (out is not None and (out / "steps" / f"{count:03d}").exists()) or seen[count] > 1:
            network.get_buffer("bn1.running_mean").fill_(7.0)

    gauge = Scripted([90.0, 89.6, 89.2, 88.6, 88.2], [90.0, 89.9, 89.6, 89.1, 88.7])
    given = {"fit": fit, "how": "identity", "max_drop": 1.0, "slack": 2.0, "final_epochs": 3}
    return run(out, **{**given, "gauge": gauge, **options})


def test_the_deepest_is_trained_first_and_the_result_is_the_fastest_that_comes_back(
    tmp_path: Path,
) -> None:
    result = scripted(tmp_path / "run")
    loop, last = result.steps[:5], result.steps[5:]
    assert [s.within for s in loop] == [True, True, True, False, False]
    assert [(s.begun_from, s.within, s.removed) for s in last] == [(4, False, 4), (3, True, 3)]
    assert {s.ended for s in last} == {result.stopped}
    assert (result.removed, result.final.top1_val) == (3, 89.1)
    assert [s.step for s in lineage(result.steps)] == [0, 1, 2, 3, 6]
    assert [s.step for s in lineage(result.steps, result.steps[2])] == [0, 1, 2]
    assert facts(scripted(None)) == facts(result)


def test_without_slack_the_search_is_as_it_was() -> None:
    result = scripted(None, slack=0.0)
    assert [s.within for s in result.steps] == [True, True, True, False, True]
    assert (result.steps[-1].begun_from, result.removed) == (2, 2)
    untrained = scripted(None, slack=None, final_epochs=0)
    assert [s.within for s in untrained.steps] == [True, True, True, False]


@pytest.mark.parametrize("kept", [5, 6])
def test_a_run_that_is_killed_between_two_last_trainings_ends_like_a_whole_one(
    tmp_path: Path, kept: int
) -> None:
    scripted(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for lost in (tmp_path / "killed" / "steps").iterdir():
        if int(lost.name) >= kept:
            shutil.rmtree(lost)
    (tmp_path / "killed" / "result.json").unlink()
    scripted(tmp_path / "killed")
    assert result_of(tmp_path / "killed") == result_of(tmp_path / "whole")


def test_slack_may_grow_until_the_last_training(tmp_path: Path) -> None:
    scripted(tmp_path / "run", slack=None, final_epochs=0)
    longer = scripted(tmp_path / "run")
    assert facts(longer) == facts(scripted(None))
    with pytest.raises(RunError, match=r"slack was 2\.0 and is 3\.0"):
        scripted(tmp_path / "run", slack=3.0)


class Taught(FakeGauge):
    """Qualities by the sites that are gone: before a fine-tuning, after it, after the last one."""

    FOUND = ((90.0, 90.0, 90.0), (88.0, 89.5, 89.6), (85.0, 87.5, 89.1), (88.2, 88.2, 88.9),
             (80.0, 88.3, 88.5))  # fmt: skip

    def __init__(self) -> None:
        super().__init__(digits().val)
        self.trainings = [0] * len(self.FOUND)

    def fit(self, network: Network) -> None:
        count = gone(network)
        self.trainings[count] += 1
        # A network keeps this, which computes nothing, and the copy for the next step has it too.
        network.get_buffer("bn1.num_batches_tracked").fill_(1000 * count + self.trainings[count])

    def quality(self, network: Network, data: Any) -> float:
        count = gone(network)
        trained = int(network.get_buffer("bn1.num_batches_tracked")) - 1000 * count
        return self.FOUND[count][trained if count and trained > 0 else 0]


def taught(out: Path | None = None) -> Result:
    gauge = Taught()
    options: dict[str, Any] = {"how": "identity", "max_drop": 1.0, "final_epochs": 5, "patience": 0}
    return run(out, gauge=gauge, fit=gauge.fit, **options)


def test_a_step_may_be_out_of_reach_for_a_while(tmp_path: Path) -> None:
    """The third fine-tuning wins nothing back and the fourth much: the slack falls and rises."""
    result = taught()
    options = SearchOptions(max_drop=1.0, final_epochs=5)
    loop = result.steps[:5]
    reached = [[s.step for s in candidates(options, loop[: n + 1])] for n in range(1, 5)]
    assert reached == [[1], [1, 2], [1, 3], [1, 2, 3, 4]]
    last = result.steps[5:]
    assert [(s.begun_from, s.within) for s in last] == [(4, False), (2, True), (3, False)]
    assert (result.removed, result.final.top1_val) == (2, 89.1)
    assert facts(taught(tmp_path / "run")) == facts(result)


def test_less_slack_than_a_run_was_begun_with_is_refused(tmp_path: Path) -> None:
    small_runs.run(tmp_path / "run", remove=1, slack=1.0)
    with pytest.raises(RunError, match=r"slack was 1\.0 and is 0\.5"):
        small_runs.run(tmp_path / "run", remove=1, slack=0.5)
