"""The network together with its loss, as one module.

The loss is inside the module that data parallelism wraps, so everything that comes out of it takes
part in the loss, whatever else the network returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from shoal.data.batch import Batch
from shoal.errors import TrainingError
from shoal.options import Recipe
from shoal.training.hooks import Hooks, listening, penalty_of, places
from shoal.training.losses import (
    check_targets,
    count_hits,
    distillation_losses,
    logits_of,
    sample_losses,
)

__all__ = ["Loss", "Objective"]

Loss = Callable[[Any, Tensor], Tensor]


class Objective(nn.Module):
    """Maps a batch to the sum of its samples' losses, with the network's weights as parameters.

    Args:
        network: what is trained.
        recipe: gives label smoothing, the weight and the temperature of distillation.
        loss: replaces the cross-entropy, as for `fit`.
        teacher: in eval mode, on the network's device; used when `recipe.distill` is above 0.
        hooks: their penalty is added for every sample.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        *,
        loss: Loss | None = None,
        teacher: nn.Module | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.loss = loss
        # In a tuple, because a module's attribute would count the teacher's weights as its own.
        self._teacher = (teacher,)
        self.check = True
        self.hooks = Hooks() if hooks is None else hooks
        self._places = places(network, self.hooks.at)
        self._values: dict[str, Any] = {}

    def listening(self) -> AbstractContextManager[None]:
        """Return the context in which forward passes collect what the penalty asked for."""
        return listening(self.network, self._places, self._values)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the sum over the batch of losses and penalty [], and what to report of it [3].

        That is the sum of the losses alone, the number of hits (NaN: not a classification) and the
        sum of the penalty (0 without one), detached. Labels are checked while `self.check` is set;
        each check waits for the device.

        Raises:
            DataError: the targets do not fit the outputs.
            TrainingError: `loss` returned something else than a mean or one loss per sample, or
                the penalty something else than a scalar.
        """
        output = self.network(*batch.args, **batch.kwargs)
        share = self.recipe.distill
        parts = []
        if share < 1.0:
            parts.append((1.0 - share) * self._task_loss(output, batch))
        if share > 0.0:
            parts.append(share * self._teacher_loss(output, batch))
        loss = torch.stack(parts).sum()
        hits = self._hits(output, batch)
        hits = torch.full_like(loss, math.nan) if hits is None else hits.to(loss)
        penalty = penalty_of(self.hooks, self.network, self._values)
        if penalty is None:
            return loss, torch.stack([loss, hits, torch.zeros_like(loss)]).detach()
        # A sample's share: the mean over the samples of a step then counts the penalty once.
        penalty = penalty.to(loss) * batch.size
        return loss + penalty, torch.stack([loss, hits, penalty]).detach()

    def _task_loss(self, output: Any, batch: Batch) -> Tensor:
        if self.loss is not None:
            return _summed(self.loss(output, batch.target), batch.size)  # type: ignore[arg-type]
        logits = logits_of(output)
        if self.check or logits.ndim != 2 or batch.target is None:
            check_targets(logits, batch.target)
        assert batch.target is not None  # check_targets has seen to it; this tells mypy
        return sample_losses(logits, batch.target, self.recipe.label_smoothing).sum()

    def _teacher_loss(self, output: Any, batch: Batch) -> Tensor:
        (teacher,) = self._teacher
        if teacher is None:
            raise TrainingError("distillation needs a teacher: give one, or set distill=0")
        with torch.no_grad():
            wanted = logits_of(teacher(*batch.args, **batch.kwargs))
        return distillation_losses(logits_of(output), wanted, self.recipe.temperature).sum()

    @torch.no_grad()
    def _hits(self, output: Any, batch: Batch) -> Tensor | None:
        """Return the number of hits; None if the outputs or the targets do not classify."""
        target = batch.target
        if target is None:
            return None
        logits = logits_of(output)
        soft = target.is_floating_point() and target.shape == logits.shape
        hard = not target.is_floating_point() and target.ndim == 1
        return count_hits(logits, target) if logits.ndim == 2 and (soft or hard) else None


def _summed(loss: Any, size: int) -> Tensor:
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.ndim <= 1:
        return loss.reshape(()) * size
    if isinstance(loss, Tensor) and loss.shape == (size,):
        return loss.sum()
    given = f"of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise TrainingError(
        f"the loss function returned {given}: return the mean over the batch (a tensor of one "
        f"element) or one loss per sample ({size} here)"
    )
