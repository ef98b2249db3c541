"""Layer Folding: the numbers of its slope, and that what is folded was learned to be linear."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import shoal
from shoal.methods.layer_folding import slope_lr
from shoal.network.modules import Blend
from small_runs import SITES, run


def test_the_blend_and_its_gradient() -> None:
    blend = Blend(nn.ReLU(), 0.25)
    z = torch.tensor([-2.0, -1.0, 0.5, 3.0])
    out = blend(z)
    assert out.tolist() == [-0.5, -0.25, 0.5, 3.0]
    out.sum().backward()
    assert blend.slope.grad is not None
    assert blend.slope.grad.item() == -3.0  # sum of min(z, 0)


@pytest.mark.parametrize(
    ("slope", "penalty", "gradient"),
    [(0.0, 0.25, 0.0), (0.25, 0.234375, -0.125), (1.0, 0.0, 0.0), (1.2, 0.11, 0.6)],
)
def test_the_penalty(slope: float, penalty: float, gradient: float) -> None:
    alpha = torch.tensor(slope, dtype=torch.float64, requires_grad=True)
    value = 0.25 * (1 - alpha**2).abs()
    value.backward()
    assert value.item() == pytest.approx(penalty)
    if slope != 1.0:  # the absolute value has no slope there
        assert alpha.grad is not None
        assert alpha.grad.item() == pytest.approx(gradient)


def steps_to_linear(lr: float, most: int) -> int:
    """SGD with momentum 0.9 on the penalty alone, from 0.01 to 0.9."""
    slope, speed = 0.01, 0.0
    for step in range(1, most + 1):
        speed = 0.9 * speed - 0.5 * slope
        slope -= lr * speed
        if slope >= 0.9:
            return step
    return most + 1


@pytest.mark.parametrize(("lr", "steps"), [(1e-3, 950), (1e-2, 128), (0.1, 27)])
def test_how_long_a_free_slope_takes(lr: float, steps: int) -> None:
    assert steps_to_linear(lr, 2000) == pytest.approx(steps, rel=0.06)


@pytest.mark.parametrize("steps", [60, 300, 1900])
def test_the_rate_is_for_the_length_of_the_training(steps: int) -> None:
    assert 0.3 * steps < steps_to_linear(slope_lr(0.25, steps), steps) < 0.9 * steps


def test_slopes_are_learned_and_what_is_linear_is_folded(tmp_path: Path) -> None:
    result = run(tmp_path, method="layer_folding", epochs=4, slope_power=1, threshold=0.8)
    step = result.steps[1]
    assert step.operation.startswith("replace")
    assert any(note.startswith("largest slope") for note in step.notes)
    assert 0 < result.removed == len(result.model.plan.names("linearize"))
    assert not any(isinstance(module, Blend) for module in result.model.modules())
    assert {s.linearized for s in result.model.sites} <= {"identity", None}
    assert result.stopped == "the rectifiers whose slopes became linear are folded"


def test_the_highest_slopes_go_where_a_number_is_asked_for() -> None:
    result = run(method="layer_folding", epochs=1, top_k=2, how="line")
    assert result.removed == 2
    assert result.total == len(SITES)


def test_slopes_that_went_further_than_was_asked_for_are_noted() -> None:
    result = run(method="layer_folding", epochs=1, slope_lr=1.0, slope_power=1, top_k=1)
    assert result.removed == 1
    noted = f"{len(SITES)} slopes became linear, top_k folds 1"
    assert any(note.startswith(noted) for note in result.steps[1].notes)


def test_a_network_that_was_folded_before_is_folded_further(tmp_path: Path) -> None:
    run(tmp_path, method="layer_folding", top_k=1)
    for part in ("best", "merged"):
        again = run(model=shoal.load(tmp_path, part), method="layer_folding", top_k=2)
        assert again.removed == 2


def test_nothing_is_folded_where_no_slope_gets_there() -> None:
    result = run(method="layer_folding", epochs=1, slope_lr=1e-9)
    assert result.removed == 0
    assert any("no slope reached 0.9" in note for note in result.steps[1].notes)
