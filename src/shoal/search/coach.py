"""Training the networks of a step: by the run's recipe, or by the user's own function."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.errors import CheckpointError, ConfigError, TrainingError
from shoal.models import check_finite
from shoal.modes import device_of
from shoal.network import Network
from shoal.onednn import safe_convolutions
from shoal.options import Recipe, find_recipe
from shoal.search.records import Step
from shoal.search.trial import FirstBatches
from shoal.seeds import derive_seed
from shoal.training import EpochReport, fit

if TYPE_CHECKING:
    from shoal.search.task import Task

__all__ = ["Coach"]


class Coach:
    """Trains the networks of one step.

    Args:
        task: data, recipe, and where checkpoints go.
        number: of the step.
        history: the steps before it: their epochs tell which ones of the data come next.
    """

    def __init__(self, task: Task, number: int, history: Sequence[Step]) -> None:
        self._task = task
        self._number = number
        self._before = sum(step.epochs for step in history)
        self._trainings = 0
        self.epochs = 0

    def train(
        self,
        network: Network,
        epochs: int,
        *,
        recipe: Recipe | str | Mapping[str, Any] | None = None,
        lr: float | None = None,
        teacher: Network | None = None,
        trial: str = "",
        **hooks: Any,
    ) -> tuple[str, ...]:
        """Train a network in place; returns what the trainer remarks.

        Args:
            network: of the step, or of a trial.
            epochs: how many.
            recipe: changes the run's; see `Lab.train`.
            lr: likewise.
            teacher: used if the recipe distils.
            trial: the name of the trial that the network is of.
            **hooks: as `shoal.training.fit` takes them.

        Raises:
            TrainingError: the loss is not finite; the network then has its former weights. Or the
                user's own training left weights that are not finite.
        """
        seed: tuple[int | str, ...] = (self._task.options.seed, "step", self._number)
        if trial:
            seed = (self._task.options.seed, "rehearsal", self._number)
        elif self._trainings:
            seed = (*seed, self._trainings)
        checkpoint = self._checkpoint(trial)
        first_epoch = self._before + self.epochs
        if not trial:
            self._trainings += 1
            self.epochs += epochs
        if self._task.fit is not None:
            return _by_user(self._task.fit, network, hooks)
        listener = self._task.listener

        def heard(report: EpochReport) -> None:
            if self._number == 0:
                self._task.rewind.remember(network, report)
            listener.epoch(report, epochs)

        chosen = self._recipe(recipe, lr, teacher)
        report = fit(
            network,
            self._task.data.train,
            epochs=epochs,
            seed=derive_seed(*seed),
            first_epoch=first_epoch,
            val=self._task.data.val if chosen.early_stop is not None else None,
            checkpoint=checkpoint,
            on_epoch=heard,
            on_batch=lambda report: listener.batch(report, epochs),
            recipe=chosen,
            teacher=teacher if chosen.distill > 0 else None,
            device=device_of(network),
            **hooks,
        )
        return report.notes

    def rehearse(
        self,
        network: Network,
        batches: int,
        *,
        recipe: Recipe | str | Mapping[str, Any] | None = None,
        lr: float | None = None,
        teacher: Network | None = None,
        **hooks: Any,
    ) -> None:
        """Train a network on the next few batches of the data."""
        if self._task.fit is not None:
            raise ConfigError("a trial of a few batches needs the built-in trainer: omit fit=")
        chosen = replace(self._recipe(recipe, lr, teacher), early_stop=None)
        fit(
            network,
            FirstBatches(self._task.data.train, batches),
            epochs=1,
            seed=derive_seed(self._task.options.seed, "rehearsal", self._number),
            first_epoch=self._before + self.epochs,
            recipe=chosen,
            teacher=teacher if chosen.distill > 0 else None,
            device=device_of(network),
            **hooks,
        )

    def _recipe(
        self,
        changes: Recipe | str | Mapping[str, Any] | None,
        lr: float | None,
        teacher: Network | None,
    ) -> Recipe:
        chosen = self._task.recipe
        if isinstance(changes, Mapping):
            chosen = replace(chosen, **changes)
        elif changes is not None:
            chosen = find_recipe(changes)
        if lr is not None:
            chosen = replace(chosen, lr=lr)
        # The dense network has nobody to learn from.
        return chosen if teacher is not None else replace(chosen, distill=0.0)

    def _checkpoint(self, trial: str) -> Path | None:
        if self._task.run is None:
            return None
        part = str(self._trainings or "")
        if trial:
            part = hashlib.sha256(trial.encode()).hexdigest()[:12]
        return self._task.run.checkpoint(self._number, part)


def _by_user(
    train: Callable[[Network], object], network: Network, hooks: Mapping[str, Any]
) -> tuple[str, ...]:
    wanted = [name for name, hook in hooks.items() if hook]
    if wanted:
        raise ConfigError(
            f"the method trains with {' and '.join(wanted)}, which a function of one's own does "
            "not know: omit fit="
        )
    with safe_convolutions(network) as notes:
        train(network)
    try:
        check_finite(network)
    except CheckpointError as error:
        raise TrainingError(f"after your own training {error}") from error
    return tuple(notes)
