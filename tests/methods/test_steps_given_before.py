"""The steps that the methods gave before they were rewritten on the lab: same seed, same choices.

The figures were recorded with latency taken from a table, on two kinds of machines, which round
differently; a kind is known by the accuracy at which one training in fp32 ends. On one that was not
recorded there is nothing to compare with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import small_runs
from shoal.merge import cut, padding
from shoal.models import digits_resnet
from shoal.network import Network, capture
from shoal.search.moves import Move
from shoal.training import evaluate, fit

RECORDED = json.loads((Path(__file__).parent / "steps_given_before.json").read_text())
"""By the validation accuracy of `residual`, and then by the name of a run."""

ADDED: dict[str, dict[str, Any]] = {
    "easier": {"method": "easier"},
    "easier identity": {
        "method": "easier", "how": "identity", "per_step": 2, "patience": 1, "max_drop": 3.0,
    },
    "easier remove samples": {
        "method": "easier", "remove": 3, "samples": 100,
        "recipe": {"lr": 0.02, "precision": "fp32", "distill": 0.5},
    },
    "easier rewind": {
        "method": "easier", "dense_epochs": 2, "rewind": 1, "remove": 2, "final_epochs": 1,
        "final_lr": 0.01, "epochs": 2,
    },
    "easier rewound": {
        "method": "easier", "dense_epochs": 1, "rewind": 0, "score_on": "rewound", "remove": 2,
    },
    "easier per latency": {
        "method": "easier", "per_latency": True, "remove": 2, "criterion": "line_loss", "seed": 3,
    },
    "easier residual": {"method": "easier", "per_step": 3, "remove": 9},
    "pruning cka": {"method": "layer_pruning"},
    "pruning l1": {"method": "layer_pruning", "criterion": "l1", "remove": 3, "per_step": 2},
    "pruning floors": {
        "method": "layer_pruning", "keep_first": True, "keep_per_stage": 1, "criterion": "kl",
        "epochs": 0,
    },
    "pruning random": {
        "method": "layer_pruning", "criterion": "random", "seed": 5, "per_latency": True,
        "max_drop": 5.0, "patience": 2,
    },
    "shoal untrained": {"method": "shoal", "tries": 0, "remove": 4, "samples": 100},
    "shoal": {"method": "shoal", "tries": 3, "remove": 6, "samples": 100, "step_saving": 0.1},
    "shoal moves": {
        "method": "shoal", "tries": 1, "moves": ["linearize", "drop"], "criterion": "accuracy",
        "how": "identity", "remove": 5, "per_step": 2, "epochs": 1, "final_epochs": 1,
    },
    "shoal small": {"method": "shoal", "tries": 2, "samples": 200, "max_drop": 10.0},
}  # fmt: skip


class TableGauge(small_runs.FakeGauge):
    """What a move saves follows from its title; paddings move wherever one layer is saved."""

    def saved_ms(self, network: Network, moves: Sequence[Move], how: str) -> Any:
        def saving(title: str) -> float:
            return round(0.2 + 0.05 * (sum(map(ord, title)) % 17), 3)

        return 10.0, {move.title: saving(move.title) for move in moves}, ""

    def paddings(self, network: Network) -> list[tuple[str, str]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cut.LatencyCosts, "map_ms", lambda *_: 1.0)
            return padding.find_movable_paddings(network)


@pytest.fixture(scope="module")
def residual() -> Network:
    torch.manual_seed(0)
    net = digits_resnet(width=8)
    data = small_runs.digits()
    fit(net, data.train, epochs=6, recipe={"lr": 0.1, "precision": "fp32"})
    return capture(net.eval(), data.example_inputs(4)).copy()


@pytest.fixture(scope="module")
def recorded(residual: Network) -> dict[str, Any]:
    """What was recorded on machines like this one."""
    accuracy = evaluate(residual, small_runs.digits().val).quality
    found: dict[str, Any] | None = RECORDED.get(f"{accuracy:.4f}")
    if found is None:
        pytest.skip(f"a machine whose rounding ends at {accuracy:.4f} % was not recorded")
    return found


@pytest.mark.long
@pytest.mark.parametrize("name", ADDED)
def test_a_method_gives_the_steps_it_gave_before(
    name: str, residual: Network, recorded: dict[str, Any]
) -> None:
    small = name == "shoal small" or (name.startswith("easier") and name != "easier residual")
    network = None if small else residual
    gauge = TableGauge(small_runs.digits().val)
    result = small_runs.run(model=network, gauge=gauge, **ADDED[name])
    wanted = recorded[name]
    found = [
        [
            step.operation,
            list(step.names),
            [step.metrics.top1_val, step.metrics.top1_test, step.top1_val_before],
        ]
        for step in result.steps
    ]
    assert found == [step[:3] for step in wanted["steps"]]
    for step, (*_, scores) in zip(result.steps, wanted["steps"], strict=True):
        assert dict(step.scores) == pytest.approx(scores, rel=1e-6, abs=1e-6)
    assert result.stopped == wanted["stopped"]
    assert [result.removed, result.total, result.unit] == wanted["removed"]
