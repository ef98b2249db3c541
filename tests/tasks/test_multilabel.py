from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shoal.errors import DataError
from shoal.tasks import find_task
from shoal.training import evaluate

MULTILABEL = find_task("multilabel")


def average_precision(scores: list[float], wanted: list[int]) -> float:
    """Return the mean, over those wanted, of the precision among all ranked as high."""
    found = [
        sum(w for s, w in zip(scores, wanted, strict=True) if s >= score)
        / sum(s >= score for s in scores)
        for score, is_wanted in zip(scores, wanted, strict=True)
        if is_wanted
    ]
    return sum(found) / len(found)


def test_quality_is_the_mean_average_precision_of_labels_that_occur() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(30, 4), (torch.rand(30, 4) > 0.6).long()
    target[:, 3] = 0  # no sample has it
    expected = [average_precision(logits[:, i].tolist(), target[:, i].tolist()) for i in range(3)]
    found = evaluate(nn.Identity(), [(logits, target)], task="multilabel")
    assert found.quality == pytest.approx(100 * sum(expected) / 3)
    assert found.loss == pytest.approx(
        F.binary_cross_entropy_with_logits(logits, target.float()).item(), rel=1e-5
    )
    assert found.top1 is None


def test_what_is_not_a_number_is_wrong_whatever_was_wanted() -> None:
    nan = float("nan")
    logits = torch.tensor([[nan, 1.0], [nan, nan], [-1.0, 1.0]])
    target = torch.tensor([[0, 1], [0, 1], [0, 1]])
    assert MULTILABEL.hits(logits, target).tolist() == [0.5, 0.0, 1.0]


def test_targets_that_do_not_fit_are_named() -> None:
    with pytest.raises(DataError, match="task='classify'"):
        MULTILABEL.check(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(DataError, match="task='regress'"):
        MULTILABEL.check(torch.zeros(2, 3), torch.randn(2, 3) * 10)
    with pytest.raises(DataError, match="no sample has a label"):
        evaluate(nn.Identity(), [(torch.randn(2, 3), torch.zeros(2, 3))], task="multilabel")
