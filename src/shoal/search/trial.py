"""Trials: what a change costs once the network has been trained with it, tried on a copy.

What a move costs before any training says little of what it costs after: a dropped block costs a
hundred times what a fitted layer in its place does, and after an epoch three times
(docs/measured.md). A few dozen optimizer steps tell the kinds of moves apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from shoal.data.batch import Batch
from shoal.errors import DataError, TrainingError
from shoal.modes import device_of, eval_mode
from shoal.network import Network
from shoal.passes.batches import Batches, set_epoch
from shoal.training.losses import logits_of, sample_losses

__all__ = ["FirstBatches", "Trial"]


class FirstBatches:
    """The first batches of a training loader's epoch.

    Args:
        loader: batches, with a length.
        count: how many of them.
    """

    def __init__(self, loader: Any, count: int) -> None:
        self._loader = loader
        self._count = min(count, len(loader))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self._loader):
            yield batch
            if number + 1 == self._count:
                return

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, if the loader has several."""
        set_epoch(self._loader, epoch)


class Trial:
    """A changed and trained copy of a step's network; made by `Lab.trial`.

    The copy is made when a figure is asked for that the run does not remember.

    Attributes:
        name: under which the run remembers its figures.
    """

    def __init__(self, lab: Any, name: str, make: Callable[[], Network], epochs: int) -> None:
        self.name = name
        self._lab = lab
        self._make = make
        self._epochs = epochs
        self._network: Network | None = None

    @property
    def failed(self) -> str:
        """Why the copy cannot be trained; empty if it can."""
        return str(self._lab.once(f"{self.name}: failed", self._try, together=True))

    @property
    def quality(self) -> float:
        """The copy's quality on the validation data, in points."""
        return float(
            self._lab.once(
                f"{self.name}: quality",
                lambda: self._lab.quality(self._made()),
                together=True,
            )
        )

    def costs(self, metric: str = "loss", samples: int | None = None) -> Tensor:
        """Return what each training sample costs with the copy, [samples], float64.

        Args:
            metric: "loss" in nats, or "accuracy": 100 where the answer is wrong, else 0.
            samples: of the training data, without augmentation; None takes all.
        """
        key = f"{self.name}: {metric} of {samples or 'all'}"
        found = self._lab.once(key, lambda: self._costs(metric, samples).tolist(), together=True)
        return torch.tensor(found, dtype=torch.float64)

    def cost_above(
        self, other: Trial, metric: str = "loss", samples: int | None = None
    ) -> tuple[float, float]:
        """Return how much more the copy costs than another, and the standard error of that.

        The error is that of the mean as an estimate for other data.
        """
        above = self.costs(metric, samples) - other.costs(metric, samples)
        spread = float(above.std()) if len(above) > 1 else 0.0
        return float(above.mean()), spread / math.sqrt(len(above))

    def adopt(self) -> None:
        """Make the copy the step's network; its training counts as the step's."""
        self._lab.take(self._made(), self._epochs)

    def forget(self) -> None:
        """Let the copy go; its figures stay."""
        self._network = None

    def _try(self) -> str:
        try:
            self._made()
        except TrainingError as error:
            return str(error)
        return ""

    def _made(self) -> Network:
        if self._network is None:
            self._network = self._make()
        return self._network

    def _costs(self, metric: str, samples: int | None) -> Tensor:
        network = self._made()
        batches = Batches(self._lab.data.train, device_of(network), samples=samples, shared=False)
        with eval_mode(network), torch.no_grad():
            return torch.cat([_costs_of(network, batch, metric) for _, batch in batches])


def _costs_of(network: Network, batch: Batch, metric: str) -> Tensor:
    logits, target = logits_of(network(*batch.args, **batch.kwargs)), batch.target
    if target is None:
        raise DataError("the training data have no labels: trials compare what they cost")
    if metric == "loss":
        return sample_losses(logits, target).double().cpu()
    wanted = target.argmax(dim=1) if target.is_floating_point() else target
    return (100.0 * (logits.argmax(dim=1) != wanted)).double().cpu()
