"""The steps of a fit: forward, backward, update, in one process or several.

accelerate says on which device a process works, forms the group of processes and splits foreign
loaders. Its `Accelerator` does not take the steps: it holds one precision for the whole process,
where fits with other recipes follow each other and each is validated in fp32; it puts a patched
`forward` on the network, which is the user's; and it averages over batches, not samples, so that
two processes or a short last batch would not give the gradient of one process.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from shoal.data.batch import Batch
from shoal.distributed import sum_across, world
from shoal.errors import TrainingError
from shoal.options import Recipe
from shoal.training.feed import Feed
from shoal.training.objective import Objective
from shoal.training.optimizer import Optimizers
from shoal.training.precision import autocast
from shoal.training.reports import BatchReport
from shoal.training.schedule import learning_rate

__all__ = ["EpochSums", "Trainer"]


class EpochSums:
    """What an epoch of training adds up to, over all processes.

    Reading a number from a GPU makes it wait, and summing over processes makes all wait, so both
    are done for several steps at once; a number that is not finite then stops the fit.

    Args:
        epoch: its number, from 0, and
        steps: how many it has, for messages.
        every: for how many steps at once the numbers are read.

    Attributes:
        loss: sum of the samples' losses.
        hits: samples whose largest logit was at the target; NaN if the task is no classification.
        penalty: sum of the penalty, once per sample.
        samples: number of samples trained on.
        lr: learning rate of the last step.
        skipped: batches left out because batch norm cannot train on one sample.
    """

    def __init__(self, epoch: int, steps: int, *, every: int) -> None:
        self.loss = self.hits = self.penalty = self.lr = 0.0
        self.samples = self.skipped = 0
        self._epoch, self._steps, self._every = epoch, steps, every
        self._pending: list[tuple[int, Tensor]] = []

    def add(self, step: int, sums: Tensor, samples: int) -> None:
        """Add a step: this process's sums [3], and the samples of all processes."""
        self.samples += samples
        self._pending.append((step, sums.float()))
        if len(self._pending) >= self._every:
            self.read()

    def read(self) -> None:
        """Read what is pending.

        Raises:
            TrainingError: a loss or a penalty is not finite.
        """
        if not self._pending:
            return
        rows = sum_across(torch.stack([sums for _, sums in self._pending])).tolist()
        for (step, _), (loss, hits, penalty) in zip(self._pending, rows, strict=True):
            for word, value in (("loss", loss), ("penalty", penalty)):
                if not math.isfinite(value):
                    raise TrainingError(
                        f"the {word} is {value} in epoch {self._epoch + 1}, step {step + 1} of "
                        f"{self._steps}: use a lower learning rate (or clip_norm); "
                        "the network has its weights from before the fit"
                    )
            self.loss += loss
            self.hits += hits
            self.penalty += penalty
        self._pending.clear()


class Trainer:
    """The moving parts of one fit; nothing of it outlives the fit.

    Args:
        objective: the network with its loss, on the feed's device.
        feed: this process's batches.
        epochs: of the whole fit, for the schedule.
        precision: "fp32", "bf16" or "fp16".
        on_batch: called after each optimizer step.
    """

    def __init__(
        self,
        objective: Objective,
        feed: Feed,
        *,
        epochs: int,
        precision: str,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self.objective = objective
        self.feed = feed
        self.recipe = objective.recipe
        self.hooks = objective.hooks
        self.epochs = epochs
        self.precision = precision
        self.device = feed.device
        self.on_batch = on_batch
        self.steps = math.ceil(len(feed) / self.recipe.accumulate)
        own = () if self.hooks.groups is None else self.hooks.groups(objective.network)
        self.optimizers = Optimizers(objective.network, self.recipe, own)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self._has_batch_norm = any(isinstance(m, _BatchNorm) for m in objective.network.modules())
        self._model: nn.Module = objective
        if world() > 1:
            # A captured network may hold parameters that no output depends on: data parallelism
            # would wait for their gradients for ever unless it looks for them, and warns if there
            # are none.
            message = "find_unused_parameters=True was specified"
            warnings.filterwarnings("ignore", message=message)
            self._model = DistributedDataParallel(objective, find_unused_parameters=True)

    def train_epoch(self, epoch: int) -> EpochSums:
        """Train one epoch (from 0) in train mode.

        Raises:
            TrainingError: the loss is not finite, or batch norm got a single value per channel.
            DataError: labels do not fit the network's outputs.
        """
        with self.objective.listening():
            return self._train_epoch(epoch)

    def _train_epoch(self, epoch: int) -> EpochSums:
        self.objective.network.train()
        sums = EpochSums(epoch, self.steps, every=1 if self.device.type == "cpu" else 20)
        largest = 0
        for step, group in enumerate(_grouped(self.feed.epoch(epoch), self.recipe.accumulate)):
            sums.lr = self._learning_rate(self.recipe, epoch, step)
            sizes, lonely = self._across(group)
            largest = max(largest, *sizes)
            usable = [not (one and size < largest) for one, size in zip(lonely, sizes, strict=True)]
            sums.skipped += usable.count(False)
            total = sum(itertools.compress(sizes, usable))
            if not total:
                continue
            self.optimizers.set_learning_rates(
                functools.partial(self._learning_rate, epoch=epoch, step=step)
            )
            added = self._step(list(itertools.compress(group, usable)), total)
            sums.add(step, added, total)
            if self.on_batch is not None:
                mean = added[0] * (world() / total)
                self.on_batch(BatchReport(epoch + 1, step + 1, self.steps, sums.lr, mean))
        sums.read()
        # Looking at labels makes a GPU wait, so they are looked at in one epoch only.
        self.objective.check = False
        return sums

    def _step(self, group: list[Batch], total: int) -> Tensor:
        """Do one optimizer step on batches of `total` samples over all processes.

        Returns:
            The sums of loss, hits and penalty over this process's samples, [3].
        """
        self.optimizers.zero_grad()
        sums = []
        for index, batch in enumerate(group):
            with self._sync(last=index == len(group) - 1):
                loss, parts = self._forward(batch)
                # Data parallelism averages the processes' gradients; together with this factor
                # that is the gradient of the mean over all samples, however they are shared out.
                self.scaler.scale(loss * (world() / total)).backward()
            sums.append(parts)
        optimizers = self.optimizers.with_gradients()
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
        if self.recipe.clip_norm is not None:
            parameters = self.objective.network.parameters()
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip_norm)
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        if optimizers:
            self.scaler.update()
        if self.hooks.after_step is not None:
            with torch.no_grad():
                self.hooks.after_step(self.objective.network)
        return torch.stack(sums).sum(dim=0)

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        try:
            with autocast(self.precision, self.device):
                loss, parts = self._model(batch)
                return loss, parts
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError(
                f"batch norm cannot train on a batch of {batch.size}: use a larger batch_size"
            ) from error

    def _across(self, group: list[Batch]) -> tuple[list[int], list[bool]]:
        """Return each batch's size over all processes, and whether some process got one sample."""
        own = [batch.size for batch in group]
        ones = [int(size == 1) for size in own]
        if world() > 1:
            own, ones = sum_across(torch.tensor([own, ones], device=self.device)).tolist()
        return own, [bool(count) and self._has_batch_norm for count in ones]

    def _learning_rate(self, recipe: Recipe, epoch: int, step: int) -> float:
        done = epoch * self.steps + step
        return learning_rate(recipe, done, steps_per_epoch=self.steps, epochs=self.epochs)

    def _sync(self, *, last: bool) -> AbstractContextManager[None]:
        """Return the context in which processes exchange gradients at the last batch only."""
        if last or not isinstance(self._model, DistributedDataParallel):
            return nullcontext()
        return self._model.no_sync()


def _grouped(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield the batches in lists of `size`; the last list may be shorter."""
    while group := list(itertools.islice(batches, size)):
        yield group
