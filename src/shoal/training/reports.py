"""What a fit reports, while it runs and at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

__all__ = ["BatchReport", "EpochReport", "FitReport", "best_epoch"]


@dataclass(frozen=True)
class BatchReport:
    """One optimizer step.

    Attributes:
        epoch: number of the epoch, from 1.
        step: number of the step in the epoch, from 1.
        steps: steps in an epoch.
        lr: the learning rate used.
        loss: mean loss of this process's samples, a detached tensor []: reading it with `.item()`
            waits for the device.
    """

    epoch: int
    step: int
    steps: int
    lr: float
    loss: Tensor


@dataclass(frozen=True)
class EpochReport:
    """One epoch.

    Attributes:
        epoch: number of the epoch, from 1.
        seconds: wall-clock time of training and validation together.
        loss: mean training loss per sample while the weights changed, without the penalty.
        lr: learning rate of the last step.
        train_top1: accuracy in percent on the (augmented) training batches as they came, in train
            mode; None if a custom loss does something else than classify.
        val_top1: accuracy in percent on the validation data at the end of the epoch; None without
            validation data.
        val_loss: mean cross-entropy per validation sample; None without validation data.
        penalty: mean penalty that was added to the loss; None without one.
    """

    epoch: int
    seconds: float
    loss: float
    lr: float
    train_top1: float | None
    val_top1: float | None = None
    val_loss: float | None = None
    penalty: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


@dataclass(frozen=True)
class FitReport:
    """A whole fit.

    Attributes:
        epochs: one report each, those before an interruption included.
        seconds: sum of the epochs' seconds.
        stopped_early: whether the validation accuracy ended the run before its last epoch.
        best_epoch: number (from 1) of the epoch whose weights the network has now, if the recipe
            stops early; None if it does not, and the weights are those of the last epoch.
        skipped_batches: last batches of one sample that batch norm could not have trained on,
            counted over all epochs.
        resumed_from: number of epochs that the checkpoint brought; None if the fit started over.
        precision: "fp32", "bf16" or "fp16".
        device: where it ran, such as "cpu" or "cuda:0".
        notes: remarks for the user, one line each.
    """

    epochs: tuple[EpochReport, ...]
    seconds: float
    stopped_early: bool
    best_epoch: int | None
    skipped_batches: int
    resumed_from: int | None
    precision: str
    device: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def best_epoch(history: Sequence[EpochReport]) -> int:
    """Return the number (from 1) of the epoch with the best validation accuracy, 0 if none has one.

    Among equals the lower validation loss wins, then the earlier epoch.
    """
    judged = [
        (report.val_top1, -report.val_loss, -report.epoch)
        for report in history
        if report.val_top1 is not None and report.val_loss is not None
    ]
    return -max(judged)[2] if judged else 0
