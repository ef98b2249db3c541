"""What unfinished steps keep in a run's folder: each is there as long as it can be continued."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.errors import TrainingError
from shoal.search.lab import Lab
from shoal.search.setup import Listener
from small_runs import FakeGauge, digits, run


class Heard(Listener):
    """Notes the epochs it hears of; ends the call after so many, as Ctrl-C does."""

    def __init__(self, epochs: int = 0) -> None:
        self.left, self.numbers = epochs, list[int]()

    def epoch(self, report: Any, epochs: int) -> None:
        self.numbers.append(report.epoch)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


class Fails(shoal.Method):
    """Takes one step; the next one fails, each time it is tried."""

    def step(self, lab: Lab) -> bool:
        if lab.number == 2:
            raise TrainingError("broken")
        lab.linearize(["act"], "identity")
        lab.train()
        return True


def test_a_step_that_fails_again_leaves_the_last_training_that_was_interrupted(
    tmp_path: Path,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, method=Fails, final_epochs=2, listener=Heard(2))
    assert (tmp_path / "training-002-last-1.pt").exists()
    ears = Heard()
    found = run(tmp_path, method=Fails, final_epochs=2, listener=ears)
    assert ears.numbers[-1:] == [2]
    assert len(ears.numbers) == 1
    assert found.stopped == "step 2 failed: broken"
    assert not list(tmp_path.glob("training-*"))


class Asks(shoal.Method):
    """Asks once in each of its three steps, and is told how often it was."""

    asked = 0

    def ask(self) -> int:
        type(self).asked += 1
        return self.asked

    def step(self, lab: Lab) -> bool:
        sites = [site.name for site in lab.network.sites if site.linearized is None]
        if lab.number > 3:
            return lab.done()
        lab.note(f"asked {lab.once('asked', self.ask)}")
        lab.linearize(sites[:1], "identity")
        lab.train()
        return True


def test_what_a_later_step_measured_goes_with_the_steps_before_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, method=Asks, epochs=2, listener=Heard(5))  # in the third step
    assert (tmp_path / "measured-003.json").exists()
    shutil.rmtree(tmp_path / "steps" / "002")
    result = run(tmp_path, method=Asks, epochs=2)
    assert [step.notes for step in result.steps[1:]] == [
        ("asked 1",),
        ("asked 4",),
        ("asked 5",),
    ]


@pytest.mark.parametrize("kept", [False, True])
def test_a_quality_that_is_no_number_ends_the_search_with_what_there_is(
    kept: bool, tmp_path: Path
) -> None:
    qualities = iter([90.0, 89.0, 89.0, 88.0, float("nan")])
    gauge = FakeGauge(digits().val, quality=lambda network: next(qualities))
    result = run(tmp_path if kept else None, gauge=gauge, test=None)
    assert result.stopped.startswith("step 2 failed: ")
    assert [step.metrics.top1_val for step in result.steps] == [90.0, 89.0]
    assert result.removed == 1
