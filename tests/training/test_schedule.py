from __future__ import annotations

import pytest

from shoal.training import Recipe, recipes
from shoal.training.optimizer import learning_rate


def rates(recipe: Recipe, steps: int, epochs: int) -> list[float]:
    total = range(steps * epochs)
    return [learning_rate(recipe, s, steps_per_epoch=steps, epochs=epochs) for s in total]


def test_cosine_starts_at_the_peak_is_half_at_half_and_ends_near_zero() -> None:
    values = rates(Recipe(lr=0.2), 10, 4)
    assert values[0] == 0.2
    assert values[20] == pytest.approx(0.1)
    assert 0 < values[-1] < 0.001
    assert values == sorted(values, reverse=True)


def test_the_papers_milestones_fall_at_epochs_80_and_120_of_160() -> None:
    values = rates(recipes["easier_cifar"], 7, 160)
    assert values[80 * 7 - 1] == 0.1
    assert values[80 * 7] == pytest.approx(0.01)
    assert values[120 * 7 - 1] == pytest.approx(0.01)
    assert values[120 * 7] == pytest.approx(0.001)


def test_the_milestone_of_domainbed_falls_at_epoch_24_of_30() -> None:
    values = rates(recipes["easier_domainbed"], 3, 30)
    assert values[24 * 3 - 1] == pytest.approx(1e-3)
    assert values[24 * 3] == pytest.approx(1e-4)


def test_a_constant_schedule_is_constant() -> None:
    assert set(rates(recipes["easier_transfer"], 5, 2)) == {1e-4}


def test_warm_up_rises_linearly_to_the_peak_over_part_of_an_epoch() -> None:
    values = rates(Recipe(lr=1.0, warmup_epochs=0.5), 8, 2)
    assert values[:4] == [0.25, 0.5, 0.75, 1.0]
    assert values[4] == 1.0
    assert values[5] < 1.0


def test_warm_up_takes_half_of_a_short_run_at_most() -> None:
    values = rates(Recipe(lr=1.0, warmup_epochs=5), 10, 1)
    assert values[4] == 1.0
    assert values[-1] < 0.1


def test_there_is_a_rate_after_the_end() -> None:
    assert learning_rate(Recipe(), 99, steps_per_epoch=1, epochs=1) == 0.0
