"""Every method goes on from a kept folder to the same result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from registries import methods
from shoal.search.setup import Listener
from small_chain import chain
from small_runs import captured, facts, run, same_weights


class Stop(Listener):
    """Interrupts a run as Ctrl-C does: after so many epochs, stages begun, or scores."""

    def __init__(self, *, epochs: int = -1, stages: int = -1, scores: int = -1) -> None:
        self.epochs, self.stages, self.scores = epochs, stages, scores

    def epoch(self, report: Any, epochs: int) -> None:
        self.epochs -= 1
        self._look()

    def stage(self, number: int, what: str) -> None:
        self.stages -= 1
        self._look()

    def scored(self, done: int, total: int) -> None:
        self.scores -= 1
        self._look()

    def _look(self) -> None:
        if 0 in (self.epochs, self.stages, self.scores):
            raise KeyboardInterrupt


METHODS: dict[str, dict[str, Any]] = {
    "easier": {},
    "layer_pruning": {},
    "shoal": {"tries": 1, "per_step": 1},
    "tlc": {"replace": "mask", "inputs": "data", "remove": 4, "keep": 0},
    "lacoot": {"tune_epochs": 2, "remove": 1},
    "random": {},
    "magnitude": {},
    "differentiable": {"push": 2},
    "layer_folding": {"slope_power": 1},
    "egp": {"share": 0.2},
    "snl": {
        "unit": "channel", "search_epochs": 4, "epochs": 3, "max_relus": 250, "gate_lr": 0.02,
        "kappa": 1e-3, "remove": None,
    },
    "deepreduce": {"trial_epochs": 1, "remove": None},
}  # fmt: skip
NETWORKS = {"layer_pruning": chain}  # the others remove rectifiers, of `captured`

STOPS: dict[str, list[dict[str, int]]] = {
    "snl": [{"epochs": 2}, {"epochs": 4}],  # in the search, and in the fine-tuning
    "deepreduce": [{"stages": 5}, {"stages": 4}],  # in the trials of the first step, and later
    # After the first of three tries, and in the fine-tuning of both steps.
    "shoal": [{"scores": 4}, {"epochs": 1}, {"epochs": 2}],
}
WITHIN_STEPS = [{"epochs": 1}, {"epochs": 2}]  # in the first one, then in the second one


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_ends_alike(method: str, tmp_path: Path) -> None:
    options = {"method": method, "epochs": 2, "remove": 2, **METHODS[method]}
    options["model"] = NETWORKS.get(method, captured)()
    whole = run(tmp_path / "whole", **options)
    for stop in STOPS.get(method, WITHIN_STEPS):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", listener=Stop(**stop), **options)
    again = run(tmp_path / "stopped", **options)
    assert facts(again) == facts(whole)
    assert same_weights(again.model, whole.model)
    assert not list((tmp_path / "stopped").glob("measured*"))


def test_no_method_is_left_out() -> None:
    own = {n for n in methods if methods[n].__module__.startswith("shoal.methods")}
    assert set(METHODS) == own
