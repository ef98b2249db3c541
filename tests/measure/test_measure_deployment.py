"""Deployments: which there are, and that each counts by its share and not by its milliseconds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from shoal.errors import OptionError
from shoal.measure import Deployment, Ratio, deployments, measure_in, sized, together
from shoal.runtimes import find_runtime
from shoal.runtimes.eager import Eager

QUICK = {"repeats": 3, "min_seconds": 0.0}


def test_each_runtime_at_each_batch_size_once() -> None:
    assert deployments() == (Deployment("eager", 1),)
    wanted = tuple(Deployment(r, b) for r in ("eager", "openvino") for b in (1, 32))
    assert deployments("eager, openvino,eager", [1, 32, 1]) == wanted
    assert deployments(["eager", "openvino"], (1, 32)) == wanted
    eager = find_runtime("eager")
    assert deployments(eager, 4) == deployments([eager], [4]) == (Deployment(eager, 4),)
    assert str(deployments(eager, 4)[0]) == "eager at batch 4"


@pytest.mark.parametrize(
    ("runtime", "batch"), [("", 1), ("eager,", 1), ([], 1), ("eager", 0), ("eager", [])]
)
def test_what_is_no_deployment_is_told(runtime: str, batch: int) -> None:
    with pytest.raises(OptionError):
        deployments(runtime, batch)


@pytest.mark.long
def test_inputs_are_repeated_or_left_out_to_the_size() -> None:
    x = torch.arange(3.0)
    assert sized({"x": x}, 5)["x"].tolist() == [0, 1, 2, 0, 1]
    assert sized((x,), 2)[0].tolist() == [0, 1]
    found = measure_in(deployments("eager", (1, 5)), {"a": torch.sin}, x, **QUICK)
    assert [one["a"].batch_size for one in found] == [1, 5]


@pytest.mark.long
def test_a_model_is_made_to_run_once_for_all_batch_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    make = Eager.make
    monkeypatch.setattr(Eager, "make", lambda *given: made.append(given) or make(*given))
    found = measure_in(deployments("eager", (1, 4, 2)), {"a": torch.sin}, torch.ones(3), **QUICK)
    assert [one["a"].batch_size for one in found] == [1, 4, 2]
    assert len(made) == 1


FAST, SLOW = Ratio.of([4.0] * 6, [1.0] * 6), Ratio.of([100.0] * 6, [80.0] * 6)


def test_shares_are_summed_and_not_milliseconds() -> None:
    found = together([FAST, SLOW])
    assert found.median == pytest.approx(2 / (1 / 4 + 80 / 100))  # 2 units before, and after
    assert found == together([SLOW, FAST])
    assert SLOW.median < found.median < FAST.median
    slower_machine = Ratio.of([4000.0] * 6, [1000.0] * 6)
    assert together([slower_machine, SLOW]).median == pytest.approx(found.median)
    assert together([FAST]) is FAST
    assert together([FAST, FAST]).median == pytest.approx(FAST.median)


def test_what_is_uncertain_of_one_is_so_of_all() -> None:
    wide = replace(SLOW, low=0.5, high=3.0, pairs=4, confidence=0.0, doubt="busy")
    found = together([FAST, wide])
    assert (found.confidence, found.pairs, found.doubt) == (0.0, 4, "busy")
    assert found.low < found.median < found.high
    assert math.isclose(1 / found.low, (1 / FAST.low + 1 / 0.5) / 2)
