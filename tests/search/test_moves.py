"""What moves save: only what is certain, and MACs where the clock cannot say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

import shoal
import small_runs
from shoal.measure import Latency, ratio
from shoal.merge.cut import LatencyCosts, LayerCosts
from shoal.search.gauge import Gauge
from shoal.search.moves import find_moves, saved_ms, saved_shares
from shoal.search.work import Work


@pytest.fixture(autouse=True)
def told_by_rounds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where networks lie in memory takes part in no interval here."""
    monkeypatch.setattr(ratio, "PLACEMENT", 0.0)


WORKS = {
    "": Work(100, 1_000_000),
    "large": Work(98, 900_000),
    "small": Work(99, 990_000),
    "tiny": Work(99, 999_900),
    "none": Work(100, 1_000_000),
}


def timed(disturbed: str = "", **milliseconds: tuple[float, ...]) -> dict[str, Latency]:
    """The whole network takes 10 ms in each of five rounds, the others what is given."""
    given = {"": (10.0,) * 5, **milliseconds}
    return {
        name: Latency(ms[2], ms[2], ms[2], 5, 1, 1, "cpu", 1, ms, ms, disturbed)
        for name, ms in given.items()
    }


def untold() -> Mapping[str, Work]:
    return pytest.fail("asked for work where the clock had decided")


def test_a_saving_that_is_certain_is_its_median() -> None:
    """By the lower end of a wide interval a step would make several moves where one is enough."""
    times = timed(large=(8.0, 8.8, 8.2, 8.6, 8.4), small=(9.0, 10.1, 9.8, 10.2, 9.7))
    shares, doubt = saved_shares([times], untold)
    assert doubt == ""
    assert shares == {"large": pytest.approx(0.16, abs=0.005), "small": 0.0}
    exact, _ = saved_shares([timed(large=(8.0,) * 5)], untold)
    assert exact["large"] == pytest.approx(0.2)


def test_what_cannot_be_told_from_nothing_waits() -> None:
    """A tiny layer that was timed faster by chance does not go before a large one."""
    noise = (9.3, 9.9, 10.2, 9.4, 10.1)
    shares, doubt = saved_shares([timed(large=(9.0,) * 5, tiny=noise)], untold)
    assert (shares["tiny"], doubt) == (0.0, "")
    assert shares["large"] == pytest.approx(0.1)


def test_where_nothing_is_certain_work_decides() -> None:
    noise = (9.3, 9.9, 10.2, 9.4, 10.1)
    times = timed(small=noise, tiny=noise, none=(10.0,) * 5)
    shares, doubt = saved_shares([times], lambda: {name: WORKS[name] for name in times})
    assert shares["small"] > 0.0
    assert shares["none"] == 0.0  # which is certain
    assert "no interval leaves out" in doubt


def test_what_certainly_saves_nothing_ends_it() -> None:
    shares, doubt = saved_shares([timed(none=(10.0,) * 5, tiny=(10.2,) * 5)], untold)
    assert (shares, doubt) == ({"none": 0.0, "tiny": 0.0}, "")


def test_a_measurement_that_is_not_to_be_trusted_decides_nothing() -> None:
    # By the clock the tiny one saves half; by their work the large one saves most.
    times = timed("the machine was busy", large=(12.0,) * 5, tiny=(5.0,) * 5, none=(7.0,) * 5)
    shares, doubt = saved_shares([times], lambda: {name: WORKS[name] for name in times})
    assert doubt == "the machine was busy"
    assert shares["large"] > shares["tiny"]
    assert 0.02 <= shares["large"] <= 0.1  # between its share of operations and of MACs
    assert shares["none"] == 0.0


def test_moves_are_judged_by_their_work_on_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def busy(models: Mapping[str, Any], *_: Any, **__: Any) -> dict[str, Latency]:
        found = timed("the machine was busy", **dict.fromkeys(models, (10.0,) * 5))
        return {name: found[name] for name in models}

    monkeypatch.setattr("shoal.measure.deployment.measure_latency", busy)
    images = torch.randn(2, 1, 8, 8)
    network = shoal.capture(shoal.models.digits_resnet().eval(), images)
    found = find_moves(network, ["drop"])
    whole_ms, saved, doubt = saved_ms(network, found, (images,))
    assert (whole_ms, doubt) == (10.0, "the machine was busy")
    assert all(saved[move.title] > 0.05 * whole_ms for move in found)


def test_a_step_says_where_macs_decided() -> None:
    class Busy(small_runs.FakeGauge):
        def saved_ms(self, *given: Any) -> Any:
            whole_ms, saved, *_ = super().saved_ms(*given)
            return whole_ms, saved, "the machine was busy"

    assert issubclass(Busy, Gauge)
    data = small_runs.digits()
    result = shoal.compress(
        small_runs.build(), data.train, data.val, "shoal", epochs=0, remove=1, max_drop=100.0,
        gauge=Busy(data.val),
    )  # fmt: skip
    told = "what moves save was judged by their MACs, not by the clock: the machine was busy"
    assert told in result.steps[1].notes


def test_every_deployment_counts_alike_by_shares() -> None:
    """Of 10 ms one saves 10 and 0 %, another 0 and 30 %, and the second deployment takes 100 ms."""
    first = timed(one=(9.0,) * 5, other=(10.0,) * 5)
    second = timed(one=(10.0,) * 5, other=(7.0,) * 5)
    slow = {n: replace(v, blocks_ms=tuple(10 * ms for ms in v.blocks_ms),
                       rounds_ms=tuple(10 * ms for ms in v.rounds_ms))
            for n, v in second.items()}  # fmt: skip
    for times in ([first, second], [second, first], [first, slow]):
        shares, doubt = saved_shares(times, untold)
        assert doubt == ""
        assert shares == {"one": pytest.approx(0.05), "other": pytest.approx(0.15)}


def test_what_is_slower_in_one_deployment_saves_nothing() -> None:
    first = timed(one=(10.1,) * 5, other=(9.0,) * 5)
    second = timed(one=(1.0,) * 5, other=(9.99,) * 5)  # the other: too little to tell
    shares, doubt = saved_shares([first, second], untold)
    assert (shares["one"], doubt) == (0.0, "")
    assert shares["other"] == pytest.approx(0.0505)


def test_work_decides_in_each_deployment() -> None:
    noise = (9.3, 9.9, 10.2, 9.4, 10.1)
    times = timed(small=noise, tiny=noise)
    works = {name: WORKS[name] for name in times}
    alone, _ = saved_shares([times], lambda: works)
    both, _ = saved_shares([times, times], lambda: works)
    assert both == pytest.approx(alone)


def test_moves_are_measured_in_each_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def measure(models: Mapping[str, Any], inputs: torch.Tensor, **_: Any) -> dict[str, Latency]:
        sizes.append(len(inputs))
        found = timed(**{name: (5.0,) * 5 for name in models if name})
        return {name: found[name] for name in models}

    monkeypatch.setattr("shoal.measure.deployment.measure_latency", measure)
    monkeypatch.setattr(LatencyCosts, "map_ms", lambda self, found, node: 1.0)
    monkeypatch.setattr(LayerCosts, "_weights", [1.0, 1.0])
    images = torch.randn(2, 1, 8, 8)
    network = shoal.capture(shoal.models.digits_resnet().eval(), images)
    found = find_moves(network, ["drop"])
    whole_ms, saved, _ = saved_ms(network, found, images, batch=(1, 32))
    assert sizes == [1, 32]
    assert (whole_ms, set(saved.values())) == (20.0, {10.0})
