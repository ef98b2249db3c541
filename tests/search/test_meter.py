"""The epochs that a meter measures at the end are trained by the run's task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

import shoal
import small_runs
from shoal.extras import search_energy
from shoal.extras.energy import Energy
from shoal.tasks import Task, find_task


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
