from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import small_runs
from shoal.errors import ConfigError, ShoalError
from shoal.extras import search_energy
from shoal.extras.energy import Energy
from shoal.extras.search_energy import SearchEnergy
from shoal.search.records import Step


class Meter:
    """Stands in for `EnergyMeter`: an hour of work takes 36 Wh, so a second takes 0.01 Wh."""

    def __init__(self, *, country: str | None = None) -> None:
        self.country = country

    def __enter__(self) -> Meter:
        self.begun = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        seconds = time.perf_counter() - self.begun
        self.energy = Energy(0.01 * seconds, 0.005 * seconds, seconds, True, f"x {self.country}")


@pytest.fixture
def metered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs measure with the meter above, shortly."""

    def inference(network: nn.Module, inputs: Any, *, images: int, **options: Any) -> Energy:
        size = sum(p.numel() for p in network.parameters())
        return Energy(images * size * 1e-9, images * size * 1e-10, size * 1e-6, True, "x")

    monkeypatch.setattr(search_energy, "EnergyMeter", Meter)
    monkeypatch.setattr(search_energy, "inference_energy", inference)
    monkeypatch.setattr(search_energy, "_SECONDS", 0.02)
    small_runs.untimed_commands(monkeypatch)


@pytest.mark.usefixtures("metered")
def test_a_run_tells_what_training_and_inference_take(tmp_path: Path) -> None:
    result = small_runs.run(
        tmp_path / "run", method="layer_pruning", criterion="last", dense_epochs=1, remove=1,
        meter=SearchEnergy("DEU"),
    )  # fmt: skip
    spent = [step.energy for step in result.steps]
    assert all(one is not None for one in spent)
    found = result.energy
    training = found["training"]
    assert (training["steps"], training["of_steps"]) == (2, 2)
    assert training["wh"] == pytest.approx(sum(one["wh"] for one in spent if one is not None))
    for name in ("dense", "result"):
        epoch = found["epoch"][name]
        assert epoch["wh"] == pytest.approx(0.01 * epoch["seconds"])
    seconds = {name: one["seconds"] for name, one in found["epoch"].items()}
    assert found["training_time_saved_percent"] == pytest.approx(
        100 * (1 - seconds["result"] / seconds["dense"])
    )
    inference = found["inference"]
    assert (inference["samples"], inference["batch"]) == (1000, 1)
    dense = small_runs.captured()
    sizes = [sum(p.numel() for p in net.parameters()) for net in (dense, result.model)]
    assert inference["dense"]["wh"] == pytest.approx(sizes[0] * 1e-6)
    assert inference["result"]["wh"] == pytest.approx(sizes[1] * 1e-6)
    assert found["estimated"] is True
    # A run that is called again knows it all without measuring.
    again = small_runs.run(
        tmp_path / "run", method="layer_pruning", criterion="last", dense_epochs=1, remove=1,
        meter=SearchEnergy("DEU"),
    )  # fmt: skip
    assert again.energy == found


@pytest.mark.usefixtures("metered")
def test_measuring_leaves_the_result_as_it_is() -> None:
    options = {"method": "layer_pruning", "criterion": "last", "remove": 1}
    plain = small_runs.run(**options)
    measured = small_runs.run(**options, meter=SearchEnergy())
    assert small_runs.same_weights(plain.model, measured.model)
    assert plain.energy == {}
    assert [step.energy for step in plain.steps] == [None, None]
    assert measured.steps[0].energy is None  # dense was not trained
    assert measured.energy["training"]["steps"] == 1


@pytest.mark.usefixtures("metered")
def test_of_a_users_own_training_no_epoch_is_known() -> None:
    called = []
    result = small_runs.run(
        method="easier", criterion="last", remove=1, meter=SearchEnergy(), fit=called.append
    )
    assert len(called) == 1
    assert result.energy["epoch"] is None
    assert result.energy["training_time_saved_percent"] is None
    assert result.energy["training"]["steps"] == 1


@pytest.mark.usefixtures("metered")
def test_other_loaders_train_on_their_first_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counting(network: nn.Module, loader: Any, **options: Any) -> None:
        seen.append(len(loader) * options["epochs"])
        assert options["recipe"].distill == 0.0

    batches = [(torch.randn(8, 1, 8, 8), torch.arange(8)) for _ in range(5)]
    monkeypatch.setattr(search_energy, "fit", counting)
    monkeypatch.setattr(search_energy, "_SECONDS", 10.0)  # however busy the machine is
    result = small_runs.run(
        train=batches,
        method="easier",
        criterion="last",
        remove=1,
        meter=SearchEnergy(),
        recipe={"distill": 0.5},
    )
    assert seen[:2] == [3, 3]  # what tells how long a batch takes
    assert all(count % 5 == 0 for count in seen[4:])  # nothing takes no time: whole epochs
    assert result.energy["epoch"] is not None


@pytest.mark.usefixtures("metered")
def test_steps_keep_their_energy() -> None:
    energy = Energy(2.0, 1.0, 4.0, True, "x")
    (step,) = small_runs.run(method="easier", criterion="last", remove=1).steps[1:]
    written = Step.from_dict({**step.to_dict(), "energy": energy.to_dict()})
    assert written.energy == energy.to_dict()
    assert Step.from_dict(written.to_dict()) == written
    assert "energy" not in step.to_dict()


def test_what_is_missing_is_told_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(ShoalError, match=r"shoal\[energy\]"):
        SearchEnergy()
    with pytest.raises(ConfigError, match="three letters"):
        SearchEnergy("Germany")
