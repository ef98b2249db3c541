"""Layer Folding: the numbers of its slope, and that what is folded was learned to be linear."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal.methods.layer_folding import clamp_slopes_, slope_group, slope_lr, slopes_penalty
from shoal.network.modules import Blend
from shoal.training import fit
from small_runs import SITES, run


def test_the_blend_and_its_gradient() -> None:
    blend = Blend(nn.ReLU(), 0.25)
    z = torch.tensor([-2.0, -1.0, 0.5, 3.0])
    out = blend(z)
    assert out.tolist() == [-0.5, -0.25, 0.5, 3.0]
    out.sum().backward()
    assert blend.slope.grad is not None
    assert blend.slope.grad.item() == -3.0  # sum of min(z, 0)


def slopes(*values: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]


@pytest.mark.parametrize(
    ("slope", "penalty", "gradient"),
    [(0.0, 0.25, 0.0), (0.25, 0.234375, -0.125), (1.0, 0.0, 0.0), (1.2, 0.11, 0.6)],
)
def test_the_penalty(slope: float, penalty: float, gradient: float) -> None:
    (alpha,) = slopes(slope)
    value = slopes_penalty([alpha], 0.25, 2)
    value.backward()
    assert value.item() == pytest.approx(penalty)
    assert alpha.grad is not None
    assert alpha.grad.item() == pytest.approx(gradient)


def test_the_penalty_is_a_sum_over_rectifiers_and_no_mean() -> None:
    both = slopes_penalty(slopes(0.25, 1.2), 0.25, 2)
    assert both.item() == pytest.approx(0.234375 + 0.11)
    assert slopes_penalty(slopes(0.25, 1.2), 0.5, 1).item() == pytest.approx(0.5 * (0.75 + 0.2))


def path(start: float, gradients: Sequence[float], lr: float = 1e-3) -> list[float]:
    """Train one slope, of which the task's gradient at each step is given; returns its path."""
    blend, taken = Blend(nn.ReLU(), start), list[float]()
    # Of z = -3 the output is -3·slope, which times the target is the loss.
    batches = [(torch.full((5, 1), -3.0), torch.full((5, 1), -g / 3.0)) for g in gradients]

    def after_step(network: Blend) -> None:
        clamp_slopes_([network.slope])
        taken.append(float(network.slope))

    fit(
        blend,
        batches,
        epochs=1,
        recipe={"precision": "fp32"},
        loss=lambda output, target: (output * target).mean(),
        penalty=lambda network, values: slopes_penalty([network.slope], 0.25, 2),
        groups=lambda network: [slope_group([network.slope], lr)],
        after_step=after_step,
    )
    return taken


@pytest.mark.parametrize(
    ("gradients", "expected"),
    [
        ([-3.0] * 4, [0.003, 0.0087015, 0.0168372, 0.0271678]),
        ([3.0] * 4, [0.0, 0.0, 0.0, 0.0]),
        ([3.0] * 3 + [-3.0] * 4, [0.0, 0.0, 0.0, 0.0, 0.0, 0.002203, 0.007187]),
    ],
)
def test_a_slope_goes_where_task_and_penalty_push_it(
    gradients: list[float], expected: list[float]
) -> None:
    assert path(0.0, gradients) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("lr", "steps"), [(1e-3, 950), (1e-2, 128), (0.1, 27)])
def test_how_long_a_free_slope_takes(lr: float, steps: int) -> None:
    """From 0.01 to 0.9, by the penalty alone."""
    *_, before, last = path(0.01, [0.0] * steps, lr)
    assert before < 0.9 <= last


@pytest.mark.parametrize("steps", [60, 300, 1900])
def test_the_rate_is_for_the_length_of_the_training(steps: int) -> None:
    taken = path(0.01, [0.0] * steps, slope_lr(0.25, steps))
    assert 0.3 * steps < sum(slope < 0.9 for slope in taken) < 0.9 * steps


def test_a_slope_whose_gradient_is_the_penaltys_alone_goes_as_far_as_that_takes_it() -> None:
    """Of z > 0 the rectifier is the identity whatever its slope, so the task has no gradient.

    |1 - α| pushes by λ = 0.25 at each of 20 steps: α = lr·λ·Σ (1 - 0.9^k) / 0.1 = 120.942·lr·λ.
    """
    torch.manual_seed(0)
    batches = [(torch.rand(8, 4) + 0.1, torch.arange(8) % 3) for _ in range(20)]
    net = shoal.capture(nn.Sequential(nn.ReLU(), nn.Linear(4, 3)), batches[0][0])
    recipe = {"lr": 0.02, "precision": "fp32"}
    options = {"slope_power": 1, "slope_lr": 0.02, "recipe": recipe, "test": None}
    result = run(None, net, method="layer_folding", train=batches, val=batches, **options)
    assert "largest slope 0.605, 0 of 1 folded" in result.steps[1].notes


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
