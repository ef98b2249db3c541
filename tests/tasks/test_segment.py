from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.errors import DataError
from shoal.tasks import find_task
from shoal.training import evaluate

SEGMENT = find_task("segment")


def mean_iou(given: Tensor, wanted: Tensor, classes: int, ignored: int) -> float:
    counted = wanted != ignored
    shares = []
    for one in range(classes):
        a, b = (given == one) & counted, (wanted == one) & counted
        if (a | b).any():
            shares.append(float((a & b).sum() / (a | b).sum()))
    return 100.0 * sum(shares) / len(shares)


@pytest.mark.parametrize("ignored", [255, 0])
def test_quality_is_the_mean_over_classes_of_all_pixels_together(ignored: int) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(5, 4, 6, 7), torch.randint(0, 3, (5, 6, 7))
    logits[:, 3] -= 100.0  # a class that neither side has
    target[0, 0] = ignored
    found = evaluate(nn.Identity(), [(logits, target)], task=f"segment?ignore_index={ignored}")
    expected = mean_iou(logits.argmax(1), target, 4, ignored)
    assert found.quality == pytest.approx(expected)
    assert found.name == "mIoU"


def test_the_loss_is_the_mean_over_pixels_that_count() -> None:
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    target[:, :2] = 255  # as many in each sample, so that the mean over samples is that over pixels
    losses = SEGMENT.losses(logits, SEGMENT.check(logits, target))
    expected = F.cross_entropy(logits, target, ignore_index=255)
    torch.testing.assert_close(losses.mean(), expected)
    nothing = torch.full((2, 4, 4), 255)
    assert SEGMENT.losses(logits, nothing).tolist() == [0.0, 0.0]


def test_smaller_outputs_are_enlarged_as_the_libraries_do() -> None:
    small, target = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 16, 20))
    large = F.interpolate(small, scale_factor=4, mode="bilinear", align_corners=False)
    losses = [SEGMENT.losses(x, SEGMENT.check(x, target)) for x in (small, large)]
    torch.testing.assert_close(*losses)
    with pytest.raises(DataError, match="larger by a whole factor"):
        SEGMENT.check(small, torch.zeros(2, 20, 16).long())


@pytest.mark.parametrize(
    ("outputs", "target", "message"),
    [
        ((2, 3), torch.zeros(2).long(), "task='classify'"),
        ((2, 3, 4, 4), torch.zeros(2, 4, 4), "class indices"),
        ((2, 3, 4, 4), torch.full((2, 4, 4), 3), "label 3 is outside"),
        ((2, 3, 4, 4), torch.zeros(2, 5, 5).long(), "masks have shape"),
        ((2, 3, 4, 4), torch.full((2, 4, 4), -1), "ignore_index=-1 if it is no class"),
        ((2, 1, 4, 4), torch.zeros(2, 4, 4).long(), "one for each class"),
    ],
)
def test_masks_that_do_not_fit_are_named(
    outputs: tuple[int, ...], target: Tensor, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        SEGMENT.check(torch.zeros(outputs), target)


def test_masks_may_have_a_channel() -> None:
    target = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert SEGMENT.check(torch.zeros(2, 3, 4, 4), target).shape == (2, 4, 4)


def test_masks_of_bytes_may_leave_out_a_negative_number() -> None:
    task = find_task("segment?ignore_index=-1")
    target = task.check(torch.zeros(2, 3, 4, 4), torch.full((2, 4, 4), 2, dtype=torch.uint8))
    assert target.dtype == torch.int64
    assert (target == 2).all()
