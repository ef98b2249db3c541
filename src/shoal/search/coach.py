"""Training the networks of a step, and trials: what a change costs once it has been trained with.

What a move costs before any training says little of what it costs after: a dropped block costs a
hundred times what a fitted layer in its place does, and after an epoch three times
(docs/measured.md). A few dozen optimizer steps on a copy tell the kinds of moves apart.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shoal.data.batch import Batch
from shoal.errors import CheckpointError, ConfigError, DataError, TrainingError
from shoal.models import check_finite
from shoal.modes import device_of, eval_mode
from shoal.network import Network
from shoal.onednn import safe_convolutions
from shoal.options import Recipe, at_budget, find_recipe
from shoal.passes.batches import Batches, set_epoch
from shoal.search.records import Step
from shoal.search.setup import Setup
from shoal.seeds import derive_seed, preserved_rng, seed_everything
from shoal.tasks import Task
from shoal.tasks.task import hits_of, losses_of
from shoal.training import EpochReport, fit


class Coach:
    """Trains the networks of one step: by the run's recipe, or by the user's own function.

    The epochs of `history`, the steps before it, tell which ones of the data come next.
    """

    def __init__(self, setup: Setup, number: int, history: Sequence[Step]) -> None:
        self._setup = setup
        self._number = number
        self._before = sum(step.epochs for step in history)
        self._trainings = 0
        self.epochs = 0
        self.epoch_seconds: float | None = None  # of the last training
        self._of_trials: dict[str, float] = {}  # likewise, by the trial's name
        self.seconds_before = 0.0  # of epochs that an interrupted call trained
        self.part = ""  # tells checkpoints apart where a step of one number may be another one

    # Long because the trainer and its hooks are put together here and nowhere else.
    def train(
        self,
        network: Network,
        epochs: int,
        *,
        recipe: Recipe | str | Mapping[str, Any] | None = None,
        lr: float | None = None,
        teacher: Network | None = None,
        trial: str = "",
        batches: int | None = None,
        **hooks: Any,
    ) -> tuple[str, ...]:
        """Train a network of the step, or of a trial, in place; returns what the trainer remarks.

        `recipe` and `lr` are as in `Lab.train`, the hooks as `shoal.training.fit` takes them. A
        trial may be trained on the next few `batches` alone. Raises `TrainingError` if the loss, or
        what the user's own training leaves, is not finite.
        """
        setup, number = self._setup, self._number
        seed: tuple[int | str, ...] = ("rehearsal" if trial else "step", number)
        part, first_epoch = self.part or str(self._trainings or ""), self._before + self.epochs
        if trial:
            part = hashlib.sha256(trial.encode()).hexdigest()[:12]
        else:
            seed += (self._trainings,) if self._trainings else ()
            self._trainings += 1
        if setup.fit is not None:
            if batches is not None:
                raise ConfigError("a trial of a few batches needs the built-in trainer: omit fit=")
            began = time.perf_counter()
            notes = _by_user(setup.fit, network, hooks)
            if not trial:
                self.epoch_seconds = (time.perf_counter() - began) / epochs
                self.epochs += epochs
            return notes

        def heard(report: EpochReport) -> None:
            if number == 0:
                setup.rewind.remember(network, report)
            setup.clock.keep()
            setup.listener.epoch(report, epochs)

        chosen = self._recipe(recipe, lr, teacher)
        data = setup.data.train
        if batches is not None:
            chosen, data = replace(chosen, early_stop=None), FirstBatches(data, batches)
        else:
            hooks |= {
                "checkpoint": setup.run and setup.run.checkpoint(number, part),
                "on_epoch": heard,
                "on_batch": lambda report: setup.listener.batch(report, epochs),
            }
        report = fit(
            network,
            data,
            epochs=epochs,
            seed=derive_seed(setup.options.seed, *seed),
            first_epoch=first_epoch,
            val=setup.data.val if chosen.early_stop is not None else None,
            recipe=chosen,
            teacher=teacher if chosen.distill > 0 else None,
            task=setup.task,
            device=device_of(network),
            **hooks,
        )
        if report.epochs and trial:
            self._of_trials[trial] = report.seconds / len(report.epochs)
        if trial:
            return report.notes
        self.epochs += len(report.epochs)
        before = report.epochs[: report.resumed_from or 0]
        self.seconds_before += sum(epoch.seconds for epoch in before)
        if report.epochs:
            self.epoch_seconds = report.seconds / len(report.epochs)
        return report.notes

    def adopt(self, epochs: int, trial: str) -> None:
        """Count the training of a trial as the step's."""
        self.epochs += epochs
        self.epoch_seconds = self._of_trials.get(trial, self.epoch_seconds)

    def _recipe(
        self,
        changes: Recipe | str | Mapping[str, Any] | None,
        lr: float | None,
        teacher: Network | None,
    ) -> Recipe:
        chosen = self._setup.recipe
        if isinstance(changes, Mapping):
            chosen = replace(chosen, **changes)
        elif changes is not None:
            chosen = find_recipe(changes)
            if isinstance(changes, str):  # a recipe of the run's is at its budget already
                chosen = at_budget(chosen, self._setup.options.budget or 1.0)
        if lr is not None:
            chosen = replace(chosen, lr=lr)
        # The dense network has nobody to learn from; of some tasks nobody has.
        learns = teacher is not None and self._setup.task.has_divergence
        return chosen if learns else replace(chosen, distill=0.0)


def _by_user(
    train: Callable[[Network], object], network: Network, hooks: Mapping[str, Any]
) -> tuple[str, ...]:
    wanted = [name for name, hook in hooks.items() if hook]
    if wanted:
        raise ConfigError(
            f"the method trains with {' and '.join(wanted)}, which your own training function "
            "does not take: omit fit="
        )
    with safe_convolutions(network) as notes:
        train(network)
    try:
        check_finite(network)
    except CheckpointError as error:
        raise TrainingError(f"after your own training {error}") from error
    return tuple(notes)


class FirstBatches:
    """The first `count` batches of each epoch of a training loader."""

    def __init__(self, loader: Any, count: int) -> None:
        self._loader = self.first_of = loader
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

    The copy is made when a figure is asked for that the run does not remember under the trial's
    name.
    """

    def __init__(self, lab: Any, name: str, make: Callable[[], Network], epochs: int) -> None:
        self.name = name
        self._lab = lab
        self._make = make
        self._epochs = epochs
        self._network: Network | None = None

    def _once(self, what: str, measure: Callable[[], Any]) -> Any:
        return self._lab.once(f"{self.name}: {what}", measure, together=True)

    @property
    def failed(self) -> str:
        """Why the copy cannot be trained; empty if it can."""

        def attempt() -> str:
            try:
                self._made()
            except TrainingError as error:
                return str(error)
            return ""

        return str(self._once("failed", attempt))

    @property
    def quality(self) -> float:
        """The copy's quality on the validation data, in points."""
        return float(self._once("quality", lambda: self._lab.quality(self._made())))

    def costs(self, metric: str = "loss", samples: int | None = None) -> Tensor:
        """Return what each training sample, not augmented, costs with the copy: float64 [samples].

        That is the task's "loss" (in nats, of a classifier), or of "accuracy" the percent of its
        answers that are wrong.
        """
        costs = self._once(
            f"{metric} of {samples or 'all'}", lambda: self._costs(metric, samples).tolist()
        )
        return torch.tensor(costs, dtype=torch.float64)

    def cost(self, metric: str = "loss", samples: int | None = None) -> float:
        """Return the mean of the `costs`, which alone is remembered."""
        name = f"mean {metric} of {samples or 'all'}"
        return float(self._once(name, lambda: float(self._costs(metric, samples).mean())))

    def _costs(self, metric: str, samples: int | None) -> Tensor:
        network = self._made()
        data, task = self._lab.data.train, self._lab.setup.task
        device, seed = device_of(network), self._lab.options.seed
        batches = Batches(data, device, samples=samples, shared=False)
        with preserved_rng(device), eval_mode(network), torch.no_grad():
            # All trials see the same samples, even of a user's loader that draws its order.
            seed_everything(derive_seed(seed, "score", self._lab.number), device)
            return torch.cat([_costs_of(network, task, batch, metric) for _, batch in batches])

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
        self._lab.take(self._made(), self._epochs, self.name)

    def forget(self) -> None:
        """Free the copy; its figures stay."""
        self._network = None

    def _made(self) -> Network:
        if self._network is None:
            self._network = self._make()
        return self._network


def _costs_of(network: Network, task: Task, batch: Batch, metric: str) -> Tensor:
    output = task.output(network(*batch.args, **batch.kwargs))
    if batch.target is None:
        raise DataError("the training data have no labels: trials compare what they cost")
    target = task.check(output, batch.target)
    if metric == "loss":
        return losses_of(task, output, target, batch.size).double().cpu()
    return (100.0 * (1.0 - hits_of(task, output, target, batch.size).double())).cpu()
