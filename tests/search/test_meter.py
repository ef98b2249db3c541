"""The epochs that a meter measures at the end are trained by the run's task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import shoal
import small_runs
from shoal.extras import search_energy
from shoal.extras.energy import Energy
from shoal.search.setup import Listener, Spent
from shoal.tasks import Task, find_task
from shoal.training import EpochReport


class Meter:
    """Stands in for `EnergyMeter`: all work takes 1 Wh."""

    def __init__(self, *, country: str | None = None) -> None:
        self.energy = Energy(1.0, 0.5, 1.0, True, "x")

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *error: object) -> None: ...


def test_it_trains_by_the_runs_task(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Task] = []
    real = search_energy.fit

    def fit(*given: Any, task: Task, **options: Any) -> Any:
        seen.append(task)
        return real(*given, task=task, **options)

    monkeypatch.setattr(search_energy, "EnergyMeter", Meter)
    monkeypatch.setattr(search_energy, "fit", fit)
    monkeypatch.setattr(search_energy, "inference_energy", lambda *_, **__: Meter().energy)
    monkeypatch.setattr(search_energy, "_SECONDS", 0.001)
    data = small_runs.digits()
    batches = [(x, torch.nn.functional.one_hot(y, 10).float()) for x, y in data.train]
    result = small_runs.run(
        train=batches, val=batches, test=None, task="multilabel", criterion="last", remove=1,
        gauge=small_runs.FakeGauge(batches, task="multilabel"),
        meter=search_energy.SearchEnergy(),
    )  # fmt: skip
    assert isinstance(result, shoal.Result)
    epoch: Mapping[str, Any] = result.energy["epoch"]
    assert set(epoch) == {"dense", "result"}
    assert set(seen) == {find_task("multilabel")}


class Stops(Listener):
    """Stops the search after the first epoch of a step."""

    def __init__(self) -> None:
        self.at = 0

    def stage(self, step: int, text: str) -> None:
        self.at = step

    def epoch(self, report: EpochReport, epochs: int) -> None:
        if self.at == 1 and report.epoch == 1:
            raise KeyboardInterrupt


def test_the_energy_of_a_training_that_went_on_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_energy, "EnergyMeter", Meter)
    monkeypatch.setattr(search_energy, "inference_energy", lambda *_, **__: Meter().energy)
    monkeypatch.setattr(search_energy, "_SECONDS", 0.001)
    options = {"epochs": 2, "remove": 2, "meter": search_energy.SearchEnergy()}
    with pytest.raises(KeyboardInterrupt):
        small_runs.run(tmp_path / "run", listener=Stops(), **options)
    result = small_runs.run(tmp_path / "run", **options)
    assert [step.energy is not None for step in result.steps] == [False, False, True]
    training: Mapping[str, Any] = result.energy["training"]
    assert (training["steps"], training["of_steps"], training["wh"]) == (1, 2, 1.0)


def test_a_step_that_adopts_a_trial_is_not_measured_as_a_whole() -> None:
    data = small_runs.digits()
    lab = small_runs.lab(small_runs.captured(), data.train, data.val)
    lab.spent.append(Spent({"wh": 1.0}))
    assert lab.energy() == {"wh": 1.0}
    lab.take(lab.network.copy(), 1)
    assert lab.energy() is None
