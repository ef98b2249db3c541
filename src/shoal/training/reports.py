"""What a fit reports, while it runs and at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class BatchReport:
    """One optimizer step, the `step`-th of `steps` in an epoch; both and epochs count from 1.

    The loss is the mean of this process's samples, a detached tensor []: reading it with `.item()`
    waits for the device.
    """

    epoch: int
    step: int
    steps: int
    lr: float
    loss: Tensor


@dataclass(frozen=True)
class EpochReport:
    """One epoch."""

    epoch: int  # from 1
    seconds: float  # of training and validation together
    loss: float  # mean per training sample while the weights changed, without the penalty
    lr: float  # of the last step
    # Percent of answers that were right on the (augmented) training batches as they came, in train
    # mode; None where the task's answers are not right or wrong.
    train_hits: float | None
    val_quality: float | None = None  # in points, at the end; None without validation data
    val_loss: float | None = None  # mean per validation sample; None if evaluate= gave the quality
    penalty: float | None = None  # mean that was added to the loss; None without one

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


@dataclass(frozen=True)
class FitReport:
    """A whole fit.

    Attributes:
        epochs: one report each, those before an interruption included.
        stopped_early: whether the validation quality ended the run before its last epoch.
        best_epoch: number (from 1) of the epoch whose weights the network has now, if the recipe
            stops early; None for those of the last epoch.
        skipped_batches: batches left out, in all epochs, since a batch norm would have seen one
            value per channel in some process.
        resumed_from: number of epochs that the checkpoint brought; None if the fit started over.
    """

    epochs: tuple[EpochReport, ...]
    seconds: float  # of all epochs
    stopped_early: bool
    best_epoch: int | None
    skipped_batches: int
    resumed_from: int | None
    precision: str  # "fp32", "bf16" or "fp16"
    device: str  # such as "cpu" or "cuda:0"
    notes: tuple[str, ...] = ()  # remarks for the user, one line each

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def best_epoch(history: Sequence[EpochReport]) -> int:
    """Return the number (from 1) of the epoch with the best validation quality, 0 if none has one.

    Among equals the lower validation loss wins, then the earlier epoch.
    """
    judged = [
        (report.val_quality, -(report.val_loss or 0.0), -report.epoch)
        for report in history
        if report.val_quality is not None
    ]
    return -max(judged)[2] if judged else 0
