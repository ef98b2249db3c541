from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.errors import DataError
from shoal.tasks import find_task
from shoal.training import evaluate
from shoal.training.objective import distillation_losses

CLASSIFY = find_task("classify")


def test_losses_add_up_to_torchs_mean() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(CLASSIFY.losses(logits, labels, 0.1).mean(), expected)
    torch.testing.assert_close(
        CLASSIFY.losses(logits, F.one_hot(labels, 3).float()), CLASSIFY.losses(logits, labels.int())
    )


def test_half_precision_logits_are_compared_in_fp32() -> None:
    half = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert CLASSIFY.losses(half, torch.tensor([0, 1])).dtype == torch.float32


def test_distillation_is_the_scaled_divergence_of_the_definition() -> None:
    student, teacher, t = torch.randn(4, 6), torch.randn(4, 6), 2.0
    q, p = (student / t).softmax(1), (teacher / t).softmax(1)
    expected = t**2 * (p * (p / q).log()).sum(1)
    torch.testing.assert_close(distillation_losses(CLASSIFY, student, teacher, t), expected)


def test_hits_count_hard_and_soft_targets_alike() -> None:
    logits, labels = torch.eye(3), torch.tensor([0, 1, 0])
    assert CLASSIFY.hits(logits, labels).sum() == 2
    assert CLASSIFY.hits(logits, F.one_hot(labels, 3).float()).sum() == 2


def test_mixed_targets_stay_possible() -> None:
    mixed = 0.3 * torch.eye(4)[[0, 1]] + 0.7 * torch.eye(4)[[2, 3]]
    assert CLASSIFY.check(torch.zeros(2, 4), mixed) is mixed
    assert CLASSIFY.check(torch.zeros(2, 4), mixed.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.uint16, torch.uint64])
def test_labels_may_be_whole_numbers_of_any_type(kind: torch.dtype) -> None:
    logits = torch.eye(3)
    target = CLASSIFY.check(logits, torch.tensor([0, 1, 1]).to(kind))
    assert CLASSIFY.hits(logits, target).tolist() == [True, True, False]
    assert CLASSIFY.losses(logits, target).shape == (3,)


MULTI_HOT = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("outputs", "target", "message"),
    [
        ((2, 3), torch.tensor([0, 3]), "label 3 is outside the network's 3 outputs"),
        ((2, 3), torch.tensor([-1, 0]), "label -1 is outside the network's 3 outputs"),
        ((2, 3), torch.zeros(2, 1, dtype=torch.int64), "class indices"),
        ((2, 3), torch.zeros(2, 4), "soft targets"),
        ((2, 3), torch.zeros(2), "class indices as whole numbers"),
        ((2, 3), None, "no target"),
        ((2, 3), [0, 1], "the target is a list and not a tensor: let the loader yield a tensor"),
        ((2, 3), torch.tensor([0j, 1]), "of type torch.complex64: give whole or real numbers"),
        ((2, 3), MULTI_HOT, "task='multilabel'"),
        ((2, 3), MULTI_HOT.long(), "task='multilabel'"),
        ((2, 3), torch.randn(2, 3), "task='regress'"),
        ((2, 1), torch.tensor([[1.0], [0.0]]), "task='binary'"),
        ((2, 1), torch.tensor([0, 0]), "task='binary'"),
        ((2,), torch.tensor([1.0, 0.0]), "task='binary'"),
        ((2, 1), torch.tensor([[3.5], [-0.2]]), "task='regress'"),
        ((2, 1), torch.tensor([[0.25], [0.75]]), "task='regress'"),
        ((2, 3, 4, 4), torch.zeros(2, 4, 4).long(), "task='segment'"),
        ((2, 3, 4, 4), torch.tensor([0, 1]), "not [batch, classes]"),
    ],
)
def test_targets_and_outputs_that_do_not_fit_are_named(
    outputs: tuple[int, ...], target: Tensor | None, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        CLASSIFY.check(torch.zeros(outputs), target)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_may_be_a_mistake_is_noted() -> None:
    logits, labels = torch.randn(40, 10), torch.arange(40) % 2
    assert [*CLASSIFY.notes(logits, torch.arange(40) % 10)] == []
    (note,) = CLASSIFY.notes(logits, labels)
    assert "10 outputs and no label is above 1" in note
    (note,) = CLASSIFY.notes(logits.softmax(1), torch.arange(40) % 10)
    assert "softmax" in note
    assert [*CLASSIFY.notes(logits[:5], labels[:5])] == []  # too few to tell


def test_chance_is_the_share_of_the_most_frequent_class() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    assert evaluate(nn.Identity(), [(torch.randn(4, 2), labels)]).chance == 75.0
