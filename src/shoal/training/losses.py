"""The losses, one number per sample, and how to find the logits in what a network returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.errors import DataError, TrainingError

__all__ = ["check_targets", "count_hits", "distillation_losses", "logits_of", "sample_losses"]


def logits_of(output: Any) -> Tensor:
    """Return the logits in a network's output: itself, "logits" of a mapping, or the first tensor.

    Raises:
        TrainingError: there is no tensor in it.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        if isinstance(output.get("logits"), Tensor):
            return output["logits"]
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        for value in output:
            if isinstance(value, Tensor):
                return value
    raise TrainingError(
        f"the network returned a {type(output).__name__} without a tensor: "
        "it must return logits, or a tuple or dict that holds them"
    )


def check_targets(logits: Tensor, target: Tensor | None) -> None:
    """Check that `target`, class indices `[B]` or probabilities `[B, classes]`, fits `logits`.

    Class indices must lie in the range of the outputs: on a GPU a wrong one would end the process,
    not the call.

    Raises:
        DataError: it does not, or the logits are not `[B, classes]`.
    """
    if logits.ndim != 2:
        raise DataError(
            f"the network's output has shape {list(logits.shape)}, not [batch, classes]: "
            "give a network that classifies"
        )
    if target is None:
        raise DataError("the batches have no target: let the loader yield (inputs, labels)")
    outputs = logits.shape[1]
    if target.is_floating_point():
        if target.shape != logits.shape:
            raise DataError(
                f"soft targets have shape {list(target.shape)} but the outputs "
                f"{list(logits.shape)}: give one probability per class"
            )
        return
    if target.ndim != 1 or target.dtype == torch.bool:
        raise DataError(
            f"labels have shape {list(target.shape)} and type {target.dtype}: "
            "give class indices [batch] or probabilities [batch, classes]"
        )
    if len(target) == 0:
        return
    low, high = (int(bound) for bound in target.aminmax())
    if low < 0 or high >= outputs:
        raise DataError(
            f"label {low if low < 0 else high} is outside the network's {outputs} outputs "
            f"(0 to {outputs - 1}): check the labels, or the network's number of classes"
        )


def sample_losses(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of each sample, `[B]`, in fp32 or better.

    Args:
        logits: `[B, classes]`.
        target: class indices `[B]` or probabilities `[B, classes]`.
        smoothing: share of the target that is spread evenly over the classes.
    """
    logits = _at_least_fp32(logits)
    wanted = target.to(logits.dtype) if target.is_floating_point() else target.long()
    return F.cross_entropy(logits, wanted, label_smoothing=smoothing, reduction="none")


def distillation_losses(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(teacher ‖ student) of the softened outputs for each sample, `[B]`.

    The form of Hinton et al. 2015, of logits `[B, classes]` that the temperature T divides: the
    factor T² keeps the gradient's size independent of T, and the gradient is zero where both agree.
    """
    if student.shape != teacher.shape:
        raise TrainingError(
            f"the teacher's outputs have shape {list(teacher.shape)} but the network's "
            f"{list(student.shape)}: give a teacher of the same task"
        )
    log_student = F.log_softmax(_at_least_fp32(student) / temperature, dim=1)
    log_teacher = F.log_softmax(_at_least_fp32(teacher) / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    return divergence.sum(dim=1) * temperature**2


def count_hits(logits: Tensor, target: Tensor) -> Tensor:
    """Return how many samples have their largest logit at the target, as an integer tensor []."""
    wanted = target.argmax(dim=1) if target.is_floating_point() else target
    return (logits.argmax(dim=1) == wanted).sum()


def _at_least_fp32(values: Tensor) -> Tensor:
    # A softmax in half precision loses digits.
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
