"""On a real network the fitted line keeps far more of the accuracy than the identity."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "line_vs_identity.py"


@pytest.mark.slow
def test_one_removal_from_resnet20_by_line_and_by_identity(
    cifar_jpeg: Path, resnet20_weights: Path
) -> None:
    compare = runpy.run_path(str(SCRIPT))["compare"]
    found = compare(cifar_jpeg, resnet20_weights, calibration=2000)
    assert found["dense"] > 78.0
    assert len(found["sites"]) == 19
    assert found["mean_gain"] >= 15.0
    assert found["least_gain"] >= -3.0
