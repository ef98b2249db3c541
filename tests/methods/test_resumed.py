"""Every method goes on from a kept folder to the same result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.search.setup import Listener
from small_runs import facts, run, same_weights


class Stop(Listener):
    """Interrupts the run in the training of a step, after so many epochs of all."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def epoch(self, report: Any, epochs: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


METHODS: dict[str, dict[str, Any]] = {
    "tlc": {"replace": "mask", "inputs": "data", "remove": 4, "keep": 0},
    "lacoot": {"tune_epochs": 2, "remove": 1},
    "random": {},
    "magnitude": {},
    "differentiable": {"push": 2},
    "layer_folding": {"slope_power": 1},
    "egp": {"share": 0.2},
}


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_ends_alike(method: str, tmp_path: Path) -> None:
    options = {"method": method, "epochs": 2, "remove": 2, **METHODS[method]}
    whole = run(tmp_path / "whole", **options)
    for epochs in (1, 2):  # within the first step, then within the second one
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", listener=Stop(epochs), **options)
    again = run(tmp_path / "stopped", **options)
    assert facts(again) == facts(whole)
    assert same_weights(again.model, whole.model)
    assert not list((tmp_path / "stopped").glob("measured*"))
