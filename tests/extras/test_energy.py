from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from shoal.errors import ConfigError, ShoalError
from shoal.extras.energy import Energy, EnergyMeter, inference_energy, total_energy

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(ShoalError, match=r"shoal\[energy\]"):
        EnergyMeter()


def test_figures_scale_with_the_work() -> None:
    whole = Energy(wh=2.0, co2_g=1.0, seconds=4.0, estimated=True, source="x")
    assert whole.scaled(0.5) == Energy(1.0, 0.5, 2.0, True, "x")
    assert whole.to_dict()["estimated"] is True


def test_parts_add_up() -> None:
    parts = [Energy(2.0, 1.0, 4.0, False, "x"), Energy(1.0, 0.5, 2.0, True, "x")]
    assert total_energy(parts) == Energy(3.0, 1.5, 6.0, True, "x")
    assert Energy.from_dict(parts[0].to_dict()) == parts[0]


def test_a_country_without_figures_is_told() -> None:
    pytest.importorskip("codecarbon", reason="codecarbon is not installed")
    with EnergyMeter(country="ZZZ") as meter:
        sum(range(10**6))
    assert "no figures for 'ZZZ'" in meter.energy.source


def test_wrong_options_are_one_line() -> None:
    with pytest.raises(ConfigError, match="three letters"):
        EnergyMeter(country="Germany")
    with pytest.raises(ConfigError, match="1 or more"):
        inference_energy(nn.Linear(2, 2), torch.randn(2, 2), images=0)


def test_inference_takes_energy_and_says_how_it_is_known() -> None:
    pytest.importorskip("codecarbon", reason="codecarbon is not installed")
    model = nn.Linear(8, 8).train()
    found = inference_energy(model, torch.randn(16, 8), min_seconds=1.0)
    assert found.wh > 0
    assert found.co2_g == pytest.approx(0.475 * found.wh)
    assert "codecarbon" in found.source
    assert found.estimated == ("estimated" in found.source)
    assert model.training


def test_the_energy_is_known_only_after_the_block() -> None:
    pytest.importorskip("codecarbon", reason="codecarbon is not installed")
    with EnergyMeter(country="DEU") as meter, pytest.raises(ConfigError, match="after"):
        _ = meter.energy
    assert "DEU" in meter.energy.source
