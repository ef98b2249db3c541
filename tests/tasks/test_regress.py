from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import r2_score
from torch import nn

from shoal.errors import DataError, OptionError
from shoal.tasks import find_task
from shoal.training import evaluate

REGRESS = find_task("regress")


@pytest.mark.parametrize("shape", [(20,), (20, 1), (20, 3)])
def test_quality_is_scikit_learns_r2_in_percent(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    target = torch.randn(shape) + 2000.0  # far from 0, as years are
    given = target + 0.3 * torch.randn(shape)
    found = evaluate(nn.Identity(), [(given, target)], task="regress")
    assert found.quality == pytest.approx(100 * r2_score(target, given), abs=0.01)
    assert found.loss == pytest.approx(F.mse_loss(given, target).item(), rel=1e-5)


def test_the_mean_of_the_targets_scores_zero() -> None:
    target = torch.tensor([1.0, 2.0, 6.0])
    found = evaluate(nn.Identity(), [(torch.full((3,), 3.0), target)], task="regress")
    assert found.quality == pytest.approx(0, abs=1e-9)
    assert found.chance == 0.0


def test_one_value_may_stand_with_or_without_its_dimension() -> None:
    given, target = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0])
    assert REGRESS.losses(given, REGRESS.check(given, target)).tolist() == [0.0, 4.0]
    maps = torch.zeros(2, 1, 4, 4)
    assert REGRESS.check(maps, torch.zeros(2, 4, 4)).shape == maps.shape


@pytest.mark.parametrize(
    ("distance", "loss"), [("squared", 9.0), ("absolute", 3.0), ("huber", 2.5)]
)
def test_the_loss_is_chosen_by_an_option(distance: str, loss: float) -> None:
    task = find_task(f"regress?distance={distance}")
    assert task.losses(torch.zeros(1), torch.tensor([3.0])).item() == loss
    with pytest.raises(OptionError, match="squared, absolute, huber"):
        find_task("regress", distance="cubed")


def test_targets_that_do_not_fit_are_named() -> None:
    with pytest.raises(DataError, match="one target for each output"):
        REGRESS.check(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(DataError, match="task='classify'"):
        REGRESS.check(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(DataError, match="NaN or infinite"):
        REGRESS.check(torch.zeros(2), torch.tensor([0.0, torch.nan]))
    with pytest.raises(DataError, match="all targets are equal"):
        evaluate(nn.Identity(), [(torch.randn(3), torch.full((3,), 0.1))], task="regress")
