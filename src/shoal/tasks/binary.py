"""Binary classification by one logit: yes or no for each sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from shoal.errors import DataError
from shoal.tasks.task import Task, at_least_fp32, needs_target, register_task


@register_task("binary")
class Binary(Task):
    """Yes or no by one logit: binary cross-entropy in nats, accuracy in percent.

    Outputs are `[batch]` or `[batch, 1]`, yes where above 0. Targets are 0 and 1, or probabilities,
    in the same shapes.
    """

    quality_name = "accuracy"
    expected = "[batch, 1]"

    @override
    def fits(self, output: Tensor) -> bool:
        return output.is_floating_point() and (output.ndim == 1 or output.shape[1:] == (1,))

    @override
    def check(self, output: Tensor, target: Any, values: bool = True) -> Tensor:
        target = needs_target(target)
        if not self.fits(output):
            other = "classify' or 'multilabel" if output.ndim == 2 else "segment"
            raise DataError(
                f"the network's output has shape {list(output.shape)} and a binary task one logit, "
                f"[batch, 1]: give task='{other}'"
            )
        if target.shape not in ((len(output),), (len(output), 1)):
            raise DataError(
                f"targets have shape {list(target.shape)}: give one for each logit, [batch] or "
                "[batch, 1]"
            )
        return (check_shares(target) if values else target).reshape(-1)

    @override
    def notes(self, output: Tensor, target: Any) -> Iterator[str]:
        yield from sigmoid_notes(output)

    @override
    def losses(self, output: Tensor, target: Any, smoothing: float = 0.0) -> Tensor:
        return binary_losses(output.reshape(-1), target, smoothing)

    @override
    def hits(self, output: Tensor, target: Any) -> Tensor:
        logits = output.reshape(-1)
        return ((logits > 0) == (target > 0.5)) & ~logits.isnan()

    @override
    def rows(self, output: Tensor, target: Any) -> Tensor:
        return torch.stack([self.hits(output, target), target > 0.5], dim=1).double()

    @override
    def chance(self, rows: Tensor) -> float:
        share = float(rows[:, 1].mean())
        return 100.0 * max(share, 1.0 - share)

    @override
    def divergence(self, output: Tensor, other: Tensor) -> Tensor:
        return binary_divergence(output, other).reshape(-1)

    @override
    def answers(self, output: Tensor) -> Tensor:
        return (output.reshape(-1) > 0).long()


def check_shares(target: Tensor) -> Tensor:
    """Return targets that are 0, 1 or between; `DataError` otherwise."""
    if bool(((target >= 0) & (target <= 1)).all()):
        return target
    if bool(target.isnan().any()):
        raise DataError("a target is NaN, where 0 is no and 1 is yes: leave such samples out")
    raise DataError(
        f"targets go from {float(target.min()):g} to {float(target.max()):g}, where 0 is no and 1 "
        "is yes: let the loader yield 0 and 1, or give task='regress' for real values"
    )


def binary_losses(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of yes and no, entry by entry, in nats."""
    logits = at_least_fp32(logits)
    wanted = target.to(logits.dtype) * (1.0 - smoothing) + 0.5 * smoothing
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")


def binary_divergence(output: Tensor, other: Tensor) -> Tensor:
    """Return KL(p ‖ q) of yes and no, entry by entry, for the probabilities of two logits."""
    a, b = at_least_fp32(output), at_least_fp32(other)
    yes = a.sigmoid() * (F.logsigmoid(a) - F.logsigmoid(b))
    return yes + (-a).sigmoid() * (F.logsigmoid(-a) - F.logsigmoid(-b))


def sigmoid_notes(output: Tensor) -> Iterator[str]:
    """Yield what to say of outputs that seem to be probabilities already."""
    values = output.detach()
    if len(values) > 1 and bool(((values >= 0) & (values <= 1)).all()):
        yield (
            "all outputs are from 0 to 1, as after a sigmoid, and the task takes logits, which say "
            "yes above 0: let the network return what goes into its sigmoid"
        )
