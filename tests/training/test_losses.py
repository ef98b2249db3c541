from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.errors import DataError, TrainingError
from shoal.training.evaluate import (
    check_targets,
    distillation_losses,
    hits,
    logits_of,
    sample_losses,
)


def test_logits_are_found_in_tensors_tuples_and_mappings() -> None:
    a, b = torch.zeros(2, 3), torch.ones(2, 3)
    for output in (a, (a, b), [None, a], {"logits": a, "aux": b}, {"loss": None, "out": a}):
        assert logits_of(output) is a
    assert logits_of({"aux": b, "logits": a}) is a
    with pytest.raises(TrainingError, match="without a tensor"):
        logits_of({"a": "b"})


def test_sample_losses_add_up_to_torchs_mean() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(sample_losses(logits, labels, 0.1).mean(), expected)
    torch.testing.assert_close(
        sample_losses(logits, F.one_hot(labels, 3).float()), sample_losses(logits, labels.int())
    )


def test_half_precision_logits_are_compared_in_fp32() -> None:
    assert sample_losses(torch.zeros(2, 3, dtype=torch.bfloat16), torch.tensor([0, 1])).dtype == (
        torch.float32
    )


def test_distillation_is_zero_with_zero_gradient_where_both_agree() -> None:
    student = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    losses = distillation_losses(student, student.detach(), 3.0)
    losses.sum().backward()
    assert losses.abs().max() < 1e-12
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_distillation_is_the_scaled_divergence_of_the_definition() -> None:
    student, teacher, t = torch.randn(4, 6), torch.randn(4, 6), 2.0
    q, p = (student / t).softmax(1), (teacher / t).softmax(1)
    expected = t**2 * (p * (p / q).log()).sum(1)
    torch.testing.assert_close(distillation_losses(student, teacher, t), expected)
    with pytest.raises(TrainingError, match="same task"):
        distillation_losses(student, torch.randn(4, 5), t)


def test_hits_count_hard_and_soft_targets_alike() -> None:
    logits, labels = torch.eye(3), torch.tensor([0, 1, 0])
    assert hits(logits, labels).sum() == 2
    assert hits(logits, F.one_hot(labels, 3).float()).sum() == 2


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([0, 3]), "label 3 is outside the network's 3 outputs"),
        (torch.tensor([-1, 0]), "label -1 is outside the network's 3 outputs"),
        (torch.zeros(2, 1, dtype=torch.int64), "class indices"),
        (torch.zeros(2, 4), "soft targets"),
        (None, "no target"),
    ],
)
def test_targets_that_do_not_fit_are_named(target: Tensor | None, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check_targets(torch.zeros(2, 3), target)
    assert "\n" not in str(caught.value)


def test_outputs_that_are_no_classification_are_refused() -> None:
    with pytest.raises(DataError, match=r"not \[batch, classes\]"):
        check_targets(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]))
