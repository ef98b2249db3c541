from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shoal.errors import DataError
from shoal.tasks import find_task
from shoal.training import evaluate

BINARY = find_task("binary")
LOGITS, YES = torch.tensor([2.0, -1.0, 0.5, -3.0]), torch.tensor([1, 0, 0, 0])


@pytest.mark.parametrize("outputs", [LOGITS, LOGITS[:, None]])
@pytest.mark.parametrize("target", [YES, YES.bool(), YES.float(), YES.float()[:, None]])
def test_every_usual_form_of_targets_gives_torchs_loss_and_a_count(
    outputs: torch.Tensor, target: torch.Tensor
) -> None:
    found = evaluate(nn.Identity(), [(outputs, target)], task="binary")
    assert found.quality == 75.0
    assert found.chance == 75.0  # always no
    assert found.loss == pytest.approx(
        F.binary_cross_entropy_with_logits(LOGITS, YES.float()).item()
    )


def test_divergence_is_that_of_the_two_classes() -> None:
    other = torch.tensor([0.3, -0.4, 2.0, 1.0])
    two = [torch.stack([torch.zeros(4), x], dim=1) for x in (LOGITS, other)]
    expected = find_task("classify").divergence(*two)
    torch.testing.assert_close(BINARY.divergence(LOGITS[:, None], other[:, None]), expected)


@pytest.mark.parametrize(
    ("outputs", "target", "message"),
    [
        (torch.zeros(2, 2), torch.tensor([0, 1]), "task='classify' or 'multilabel'"),
        (torch.zeros(2, 1), torch.tensor([0.5, 3.0]), "task='regress'"),
        (torch.zeros(2, 1), torch.zeros(2, 2), "one for each logit"),
        (torch.zeros(2, 1), torch.tensor([0.0, torch.nan]), "a target is NaN"),
    ],
)
def test_what_is_not_yes_or_no_is_named(
    outputs: torch.Tensor, target: torch.Tensor, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        BINARY.check(outputs, target)


def test_probabilities_are_noted() -> None:
    assert [*BINARY.notes(LOGITS, YES)] == []
    (note,) = BINARY.notes(LOGITS.sigmoid(), YES)
    assert "sigmoid" in note
