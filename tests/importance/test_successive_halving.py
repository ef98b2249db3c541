"""Successive halving finds the cheapest of many and saves most of the work on the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.errors import ConfigError
from shoal.importance.replaced import SuccessiveHalving


def race(
    means: Tensor, noise: float, keep: int | None, samples: int = 3200, batch: int = 50, **how: list
) -> tuple[SuccessiveHalving, Tensor, Tensor]:
    """Run a race among normal costs; return it, the samples of each, and the costs it found."""
    generator = torch.Generator().manual_seed(0)
    count = len(means)
    halving = SuccessiveHalving(
        how.get("weights", [1.0] * count), how.get("groups", [""] * count), keep
    )
    sums = torch.zeros(3, count, dtype=torch.float64)
    for seen in range(batch, samples + 1, batch):
        draws = means + noise * torch.randn(batch, count, generator=generator, dtype=torch.float64)
        for i in halving.running:
            own = draws[:, i]
            sums[:, i] += torch.stack([torch.tensor(float(batch)), own.sum(), own.square().sum()])
        mean = sums[1] / sums[0]
        variance = (sums[2] / sums[0] - mean.square()).clamp(min=0.0) / sums[0]
        if halving.due(seen):
            halving.drop_out(mean, variance, seen, samples)
            if halving.over:
                break
    return halving, sums[0], halving.costs_of_all(mean, variance)


def test_the_best_stay_and_the_others_meet_fewer_samples() -> None:
    means = torch.linspace(0.0, 3.0, 16, dtype=torch.float64)
    halving, samples, costs = race(means, noise=0.5, keep=2)
    assert halving.over
    assert sorted(halving.running) == [0, 1]
    assert float(samples.sum()) < 0.3 * 16 * 3200
    assert costs.argsort()[:2].tolist() == [0, 1]


def test_alike_contestants_are_halved_as_late_as_the_samples_allow() -> None:
    halving, samples, costs = race(torch.zeros(8, dtype=torch.float64), noise=1.0, keep=1)
    # Three halvings, at an eighth (or the first check after it), a quarter and a half.
    assert sorted(samples.tolist()) == [400.0] * 4 + [800.0] * 2 + [1600.0] * 2
    assert halving.over
    # Who dropped out never comes before who stayed.
    assert int(costs.argmin()) in halving.running


def test_each_group_has_its_own_race() -> None:
    means = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 12.0], dtype=torch.float64)
    halving, _, _ = race(means, noise=0.1, keep=1, groups=["a"] * 3 + ["b"] * 3)
    assert sorted(halving.running) == [0, 3]


def test_weights_decide_by_the_cost_of_what_is_bought() -> None:
    means = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    halving, _, _ = race(means, noise=0.01, keep=1, weights=[1.0, 1.0, 0.1])
    assert halving.running == [2]


def test_without_a_number_to_keep_all_run_to_the_end() -> None:
    halving, samples, _ = race(torch.arange(4, dtype=torch.float64), noise=0.1, keep=None)
    assert samples.tolist() == [3200.0] * 4
    assert not halving.over
    with pytest.raises(ConfigError, match="keep is 0"):
        SuccessiveHalving([1.0], [""], 0)
