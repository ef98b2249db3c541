"""Semantic segmentation: a class for each pixel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from shoal.errors import DataError
from shoal.options import SegmentOptions
from shoal.tasks.classify import check_indices, class_divergence, softmax_notes
from shoal.tasks.task import Task, at_least_fp32, needs_target, register_task


@register_task("segment")
class Segment(Task):
    """A class for each position: cross-entropy in nats, mIoU in percent.

    Outputs are logits `[batch, classes, height, width]` (or any positions), targets class indices
    `[batch, height, width]`. Outputs that are smaller by a whole factor are enlarged bilinearly to
    the targets, as the libraries' own losses do. The loss of a sample is the mean over its
    positions. The quality is the mean over classes of intersection over union, each summed over all
    samples; classes that neither targets nor answers have are left out.
    """

    quality_name = "mIoU"
    expected = "[batch, classes, height, width]"

    Options = SegmentOptions

    @override
    def fits(self, output: Tensor) -> bool:
        return output.ndim >= 3 and output.is_floating_point()

    @override
    def check(self, output: Tensor, target: Any, values: bool = True) -> Tensor:
        target = needs_target(target)
        if not self.fits(output):
            raise DataError(
                f"the network's output has shape {list(output.shape)}, not {self.expected}: give "
                "task='classify' for one class of a sample"
            )
        if target.is_floating_point() or target.dtype == torch.bool:
            raise DataError(
                f"masks are {target.dtype}: give class indices as whole numbers, [batch, height, "
                "width]"
            )
        if target.ndim == output.ndim and target.shape[1] == 1:
            target = target[:, 0]
        if target.shape[1:] != output.shape[2:] and _factor(output, target) is None:
            raise DataError(
                f"masks have shape {list(target.shape)} but the outputs {list(output.shape)}: give "
                "masks [batch, height, width] as large as the outputs, or larger by a whole factor"
            )
        if output.shape[1] == 1:
            raise DataError(
                "the network has one output for each position, which is right as the only class "
                "whatever it is: give one for each class, or loss= and evaluate= of your own"
            )
        target = target.long()  # in bytes no negative number could be compared
        if values:
            check_indices(target, output.shape[1], self.options.ignore_index)
        return target

    @override
    def notes(self, output: Tensor, target: Any) -> Iterator[str]:
        yield from softmax_notes(output)

    @override
    def losses(self, output: Tensor, target: Any, smoothing: float = 0.0) -> Tensor:
        logits, ignored = self._enlarged(output, target), self.options.ignore_index
        losses = F.cross_entropy(
            logits, target, ignore_index=ignored, label_smoothing=smoothing, reduction="none"
        )
        counted = (target != ignored).flatten(1).sum(1)
        return losses.flatten(1).sum(1) / counted.clamp(min=1)

    @override
    def hits(self, output: Tensor, target: Any) -> Tensor:
        counted = (target != self.options.ignore_index).flatten(1)
        right = (self._given(output, target) == target).flatten(1) & counted
        return right.sum(1).double() / counted.sum(1).clamp(min=1)

    @override
    def rows(self, output: Tensor, target: Any) -> Tensor:
        # By sample and class: positions that are right, that targets have, that answers have
        classes = output.shape[1]
        counted = target != self.options.ignore_index
        given, wanted = self._given(output, target), target
        parts = [(counted & (given == wanted), wanted), (counted, wanted), (counted, given)]
        rows = []
        for sample in range(len(target)):
            counts = [
                values[sample][chosen[sample]].bincount(minlength=classes + 1)[:classes]
                for chosen, values in parts
            ]
            rows.append(torch.cat(counts))
        return torch.stack(rows).double()

    @override
    def quality(self, rows: Tensor) -> float:
        right, wanted, given = rows.sum(0).chunk(3)
        union = wanted + given - right
        if not bool((wanted > 0).any()):
            raise DataError("no position has a class that counts: check masks and ignore_index")
        return 100.0 * float((right[union > 0] / union[union > 0]).mean())

    @override
    def chance(self, rows: Tensor) -> float:
        wanted = rows.sum(0).chunk(3)[1]
        return 100.0 * float(wanted.max() / wanted.sum()) / int((wanted > 0).sum())

    @override
    def divergence(self, output: Tensor, other: Tensor) -> Tensor:
        return class_divergence(output, other)

    @override
    def answers(self, output: Tensor) -> Tensor:
        return output.argmax(dim=1)

    def _enlarged(self, output: Tensor, target: Tensor) -> Tensor:
        logits, size = at_least_fp32(output), target.shape[1:]
        if logits.shape[2:] == size:
            return logits
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def _given(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the class of each position; one more than there are where the output is NaN."""
        logits = self._enlarged(output, target)
        nothing = logits.isnan().any(1)
        return logits.argmax(dim=1).masked_fill(nothing, logits.shape[1])


def _factor(output: Tensor, target: Tensor) -> int | None:
    """Return how many times larger masks are than outputs, if that is a whole number."""
    small, large = output.shape[2:], target.shape[1:]
    if len(small) != 2 or len(large) != 2:
        return None
    factors = {b / a for a, b in zip(small, large, strict=True)}
    factor = factors.pop()
    return int(factor) if not factors and factor == int(factor) else None
