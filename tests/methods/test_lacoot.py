"""LaCoOT: one training, then a block less at each step, and what the penalty does to the blocks."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

import shoal
from shoal.errors import NothingToRemoveError
from shoal.search.records import Result
from small_chain import chain
from small_runs import removals, run, same_weights


def lacoot(out: Path | None = None, **options: Any) -> Result:
    return run(out, chain(), method="lacoot", **options)


def test_one_training_gives_the_networks_with_every_number_of_blocks(tmp_path: Path) -> None:
    result = lacoot(tmp_path)
    total = sum(block.removable for block in chain().blocks)
    assert [step.epochs for step in result.steps] == [0, 1] + [0] * total
    assert [step.removed for step in result.steps] == [0, 0, *range(1, total + 1)]
    assert [step.operation for step in result.steps[1:]] == ["fine-tune"] + ["drop"] * total
    assert result.unit == "blocks"
    trained = shoal.load(tmp_path, step=1)
    for step in result.steps[2:]:
        assert step.names == (min(step.scores, key=step.scores.__getitem__),)
        shoal.drop_(trained, list(step.names))
        assert same_weights(trained, shoal.load(tmp_path, step=step.step))
    macs = [step.metrics.macs for step in result.steps[1:]]
    assert macs == sorted(set(macs), reverse=True)


@pytest.mark.parametrize("paired", [False, True])
def test_the_penalty_brings_input_and_output_together(paired: bool) -> None:
    options = {"paired": paired, "remove": 1, "epochs": 3, "rank": "distance"}
    found = [
        fmean(lacoot(distance_weight=weight, lr=0.1, **options).steps[2].scores.values())
        for weight in (0.0, 10.0)
    ]
    assert found[1] < 0.8 * found[0]


def test_without_epochs_it_only_drops_and_can_train_after_each() -> None:
    bare = lacoot(epochs=0, per_step=2, remove=3)
    assert [len(names) for names in removals(bare)] == [2, 1]
    tuned = lacoot(tune_epochs=1, remove=2)
    assert [step.epochs for step in tuned.steps] == [0, 1, 1, 1]


def test_a_network_without_blocks_is_one_line() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with pytest.raises(NothingToRemoveError, match="no residual block that can be removed"):
        run(model=model, method="lacoot")
