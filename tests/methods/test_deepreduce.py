"""DeepReDuce: the least critical stage is culled, the others are thinned, by a formula it tells."""

from __future__ import annotations

import pytest

import shoal
from shoal.measure import SiteStage, rectifier_evaluations
from shoal.methods.deepreduce import _thinned, criticality
from small_runs import run

FIRST, LAST = ["relu", "act", "relu_1"], ["last"]  # the two stages of the small network


def test_criticality_weighs_quality_against_evaluations() -> None:
    assert criticality(90.0, 1000, 0.0) == 90.0
    assert criticality(90.0, 1000, 1.0) == pytest.approx(0.09)
    assert criticality(90.0, 4000, 0.5) == criticality(45.0, 1000, 0.5)


def test_a_quality_below_0_ranks_stages_too() -> None:
    """R² of a broken network: worse is less critical, and so is more evaluations."""
    assert criticality(-3.0, 1000, 0.5) > criticality(-3.0, 4000, 0.5)
    assert criticality(-3.0, 1000, 0.5) > criticality(-4.0, 1000, 0.5)
    assert criticality(1.0, 4000, 0.5) > criticality(0.0, 1000, 0.5) > criticality(-1.0, 1, 0.5)


def test_thinning_halves_the_stages_of_resnet18() -> None:
    """Stages 2 to 4 have 229,376 evaluations, and 114,688 with one of two sites in each block."""
    counts = {(16, 16): 32_768, (8, 8): 16_384, (4, 4): 8_192}
    stages = [
        SiteStage(size, (), {f"{size}.{i}": n for i in range(4)}) for size, n in counts.items()
    ]
    found = {name: n for stage in stages for name, n in stage.evaluations.items()}
    halves = [_thinned(stages, first) for first in (0, 1)]
    assert sum(found.values()) == 229_376
    assert [sum(found[name] for name in half) for half in halves] == [114_688, 114_688]
    assert sorted(halves[0] + halves[1]) == sorted(found)
    alone = SiteStage((1, 1), (), {"one": 5})
    assert _thinned([alone], 0) == _thinned([alone], 1) == []


@pytest.mark.parametrize(("weight", "culled"), [(0.0, LAST), (2.0, FIRST)])
def test_the_least_critical_stage_goes(weight: float, culled: list[str]) -> None:
    """By quality the one site on vectors is worth less; by evaluations it is worth most."""
    result = run(method="deepreduce", count_weight=weight, thin=False)
    assert list(result.steps[1].names) == culled
    scores = result.steps[1].scores
    assert {name: scores[name] == min(scores.values()) for name in scores} == {
        name: name in culled for name in FIRST + LAST
    }
    note = next(note for note in result.steps[1].notes if note.startswith("criticality"))
    assert f"evaluations^{weight:g}" in note
    assert "the published formula is not verified" in note
    assert result.stopped == "the stages are culled and thinned, as asked"


def test_it_culls_and_then_thins() -> None:
    result = run(method="deepreduce", count_weight=0.0)
    assert [step.operation for step in result.steps[1:]] == ["linearize", "linearize"]
    assert list(result.steps[1].names) == LAST
    assert list(result.steps[2].names) in (["relu", "relu_1"], ["act"])
    assert [step.metrics.relus for step in result.steps][:2] == [408, 384]
    assert result.final.relus == sum(rectifier_evaluations(result.model).values())
    assert {site.linearized for site in result.model.sites} == {"line", None}


def test_several_stages_may_go_but_never_the_last() -> None:
    result = run(method="deepreduce", cull=5, trial_epochs=0, thin=False)
    assert len(result.steps) == 2
    assert result.model.sites_left > 0


def test_trials_by_a_users_own_training_are_not_epochs_of_the_step() -> None:
    trained: list[object] = []
    result = run(method="deepreduce", epochs=2, thin=False, fit=trained.append)
    assert len(trained) == 3  # a copy for each of two stages, and what was culled
    assert [step.epochs for step in result.steps] == [0, 2]


def test_what_cannot_be_culled_or_thinned_is_said_at_once() -> None:
    linear = run(method="easier", remove=4, how="identity", per_step=4).model
    with pytest.raises(shoal.ShoalError, match="no rectifier to linearize"):
        run(model=linear, method="deepreduce")
