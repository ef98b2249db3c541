"""Classification: each sample is of one class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from shoal.errors import DataError
from shoal.tasks.task import Task, at_least_fp32, needs_target, per_sample, register_task

_ENOUGH = 20  # samples, below which it may be chance that none is of the upper classes
_ROUNDING = 0.01  # of probabilities that sum to 1, in bf16 as well


@register_task("classify")
class Classify(Task):
    """One class of several for each sample: cross-entropy in nats, top-1 in percent.

    Outputs are logits `[batch, classes]`. Targets are class indices `[batch]` or probabilities
    `[batch, classes]` (of mixup, say), whose largest one counts as the class.
    """

    quality_name = "top-1"
    expected = "[batch, classes]"

    @override
    def fits(self, output: Tensor) -> bool:
        return output.ndim == 2 and output.is_floating_point()

    @override
    def check(self, output: Tensor, target: Any, values: bool = True) -> Tensor:
        target = needs_target(target)
        _check_output(output, target)
        if target.is_floating_point():
            _check_probabilities(output, target, values)
            return target
        if target.shape == output.shape:
            raise DataError(
                f"targets have the shape of the outputs, {list(target.shape)}, as for several "
                "labels of a sample: give task='multilabel', or class indices [batch]"
            )
        if target.ndim != 1 or target.dtype == torch.bool:
            raise DataError(
                f"labels have shape {list(target.shape)} and type {target.dtype}: "
                "give class indices [batch] or probabilities [batch, classes]"
            )
        if values:
            check_indices(target, output.shape[1])
        return target

    @override
    def notes(self, output: Tensor, target: Any) -> Iterator[str]:
        yield from softmax_notes(output)
        count, classes = len(output), output.shape[1]
        highest = int(class_of(target).max()) if count else 0
        if count >= _ENOUGH and 2 * (highest + 1) <= classes:
            yield (
                f"the network has {classes:,} outputs and no label is above {highest}: check that "
                "its last layer is for these classes"
            )

    @override
    def losses(self, output: Tensor, target: Any, smoothing: float = 0.0) -> Tensor:
        logits = at_least_fp32(output)
        wanted = target.to(logits.dtype) if target.is_floating_point() else target.long()
        return F.cross_entropy(logits, wanted, label_smoothing=smoothing, reduction="none")

    @override
    def hits(self, output: Tensor, target: Any) -> Tensor:
        # NaN is no answer, though argmax takes it for the largest.
        return (output.argmax(dim=1) == class_of(target)) & ~output.isnan().any(1)

    @override
    def rows(self, output: Tensor, target: Any) -> Tensor:
        return torch.stack([self.hits(output, target), class_of(target)], dim=1).double()

    @override
    def chance(self, rows: Tensor) -> float:
        return 100.0 * float(rows[:, 1].long().bincount().max()) / len(rows)

    @override
    def divergence(self, output: Tensor, other: Tensor) -> Tensor:
        return class_divergence(output, other)

    @override
    def answers(self, output: Tensor) -> Tensor:
        return output.argmax(dim=1)


def class_of(target: Tensor) -> Tensor:
    """Return the class of each sample, `[B]`: of probabilities, the place of the largest."""
    return target.argmax(dim=1) if target.is_floating_point() else target


def class_divergence(output: Tensor, other: Tensor) -> Tensor:
    """Return KL(p ‖ q) of the classes of each sample, `[B]`; of several positions their mean.

    p and q are the softmax of `output` and of the `other`, `[B, classes, …]`.
    """
    log_p, log_q = (F.log_softmax(at_least_fp32(x), dim=1) for x in (output, other))
    return per_sample(F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1))


def softmax_notes(output: Tensor) -> Iterator[str]:
    """Yield what to say of outputs that seem to be probabilities already."""
    values = output.detach().float()
    if bool((values >= 0).all()) and bool(((values.sum(1) - 1).abs() < 1e-3).all()):
        yield (
            "the outputs are probabilities, as after a softmax, and the task takes logits: let the "
            "network return what goes into its softmax"
        )


def check_indices(target: Tensor, outputs: int, ignored: int | None = None) -> None:
    """Raise `DataError` unless class indices, but for those ignored, lie within the outputs."""
    counted = target if ignored is None else target[target != ignored]
    low, high = map(int, counted.aminmax()) if counted.numel() else (0, 0)
    if low < 0 or high >= outputs:
        wrong = low if low < 0 else high
        unless = "" if ignored is None else f", or give ignore_index={wrong} if it is no class"
        raise DataError(
            f"label {wrong} is outside the network's {outputs} outputs (0 to {outputs - 1}): check "
            f"the labels, or the network's number of classes{unless}"
        )


def _check_output(output: Tensor, target: Tensor) -> None:
    """Raise `DataError` for outputs of another task, and name that where it can be told."""
    if output.ndim == 1 or output.shape[1:] == (1,):
        raise DataError(
            f"the network has one output, {list(output.shape)}, which is right as the only class "
            f"whatever it is: give task='{'regress' if _is_real(target) else 'binary'}'"
        )
    if output.ndim == 2:
        return
    hint = "give a network that classifies, or loss= and evaluate= of your own"
    if output.ndim > 2 and target.shape == (len(output), *output.shape[2:]):
        hint = "give task='segment' if each position has a class"
    raise DataError(
        f"the network's output has shape {list(output.shape)}, not [batch, classes]: {hint}"
    )


def _check_probabilities(output: Tensor, target: Tensor, values: bool) -> None:
    if target.shape != output.shape:
        raise DataError(
            f"soft targets have shape {list(target.shape)} but the outputs "
            f"{list(output.shape)}: give one probability per class, class indices as whole "
            "numbers, or task='regress' for real values"
        )
    if not values:
        return
    sums = target.float().sum(1)
    if bool((target < 0).any()) or not bool(((sums - 1.0).abs() <= _ROUNDING).all()):
        right = "regress" if _is_real(target) else "multilabel"
        what = "real values" if right == "regress" else "several labels of a sample"
        raise DataError(
            "the targets are no probabilities of classes, as their rows are negative or do not sum "
            f"to 1: give task='{right}' for {what}"
        )


def _is_real(target: Tensor) -> bool:
    """Whether targets are no labels: neither whole numbers nor all 0 or 1."""
    return target.is_floating_point() and not bool(((target == 0) | (target == 1)).all())
