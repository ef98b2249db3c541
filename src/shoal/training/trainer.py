"""The steps of a fit: forward, backward, update, in any process.

accelerate says on which device a process works and forms the group of processes. Its `Accelerator`
does not take the steps: it holds one precision for the whole process, where fits with other recipes
follow each other and each is validated in fp32; it puts a patched `forward` on the network, which
is the user's; and it averages over batches, not samples, so that two processes or a short last
batch would not give the gradient of one process.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shoal.data.batch import Batch, sent
from shoal.distributed import sum_across, world
from shoal.errors import TrainingError
from shoal.passes.lone_samples import sees_one_value
from shoal.seeds import generator, preserved_rng
from shoal.tasks.task import assert_has_gradient
from shoal.training.compiled import Compiling
from shoal.training.evaluate import autocast, broken_inputs
from shoal.training.feed import Feed
from shoal.training.objective import Objective
from shoal.training.optimizer import Optimizers, learning_rate
from shoal.training.reports import BatchReport


class EpochSums:
    """What an epoch of training adds up to, over all processes.

    Reading a number from a GPU makes it wait, and summing over processes makes all wait, so both
    are done for several steps at once (`every`); a number that is not finite then stops the fit.
    """

    def __init__(self, epoch: int, steps: int, *, every: int) -> None:
        self.loss = self.penalty = 0.0  # summed over samples
        self.hits = 0.0  # NaN if answers are not right or wrong
        self.samples = 0
        self.lr = 0.0  # of the last step
        self.skipped = 0  # batches left out: a batch norm would see one value per channel
        self._epoch, self._steps, self._every = epoch, steps, every
        self._pending: list[tuple[int, Tensor]] = []

    def add(self, step: int, sums: Tensor, samples: int) -> None:
        """Add a step: this process's sums [3], and the samples of all processes."""
        self.samples += samples
        self._pending.append((step, sums.float()))
        if len(self._pending) >= self._every:
            self.read()

    def read(self) -> None:
        """Read what is pending; raises `TrainingError` if a loss or a penalty is not finite."""
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


@dataclass
class Trainer:
    """The moving parts of one fit; nothing of it outlives the fit."""

    objective: Objective
    feed: Feed
    epochs: int
    precision: str
    on_batch: Callable[[BatchReport], None] | None

    def __post_init__(self) -> None:
        objective, self.device = self.objective, self.feed.device
        self.recipe, self.hooks = objective.recipe, objective.hooks
        self.steps = math.ceil(len(self.feed) / self.recipe.accumulate)
        own = () if self.hooks.groups is None else self.hooks.groups(objective.network)
        self.optimizers = Optimizers(objective.network, self.recipe, own)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        parts = [*objective.network.modules()] if objective.network.training else []
        self._frozen = [module for module in parts if not module.training]
        self._small: dict[tuple[torch.Size, ...], bool] = {}  # what `_too_small` found
        self.check = True  # the labels
        passes = self.epochs * len(self.feed)
        asked = self.recipe.compile_training
        self.compiling = Compiling(asked, objective, passes, self.device)
        self._model: nn.Module = objective
        if world() > 1:
            # A captured network may hold parameters that no output depends on: data parallelism
            # would wait for their gradients for ever unless it looks for them, and warns if there
            # are none.
            warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
            self._model = DistributedDataParallel(objective, find_unused_parameters=True)

    def train_epoch(self, epoch: int) -> EpochSums:
        """Train one epoch (from 0) in train mode; parts that were alone in eval mode stay in it."""
        self._mixing = generator(self.feed.seed, "mix pairs", epoch)  # alike in all processes
        self.objective.network.train()
        for module in self._frozen:
            module.training = False
        sums = EpochSums(epoch, self.steps, every=1 if self.device.type == "cpu" else 20)
        batches = self.feed.epoch(epoch)
        groups = iter(lambda: list(itertools.islice(batches, self.recipe.accumulate)), [])
        largest = 0
        with self.objective.listening():
            for step, group in enumerate(groups):
                rate = functools.partial(
                    learning_rate,
                    step=epoch * self.steps + step,
                    steps_per_epoch=self.steps,
                    epochs=self.epochs,
                )
                sums.lr = rate(self.recipe)
                sizes, lonely = self._across(group)
                largest = max(largest, *sizes)
                usable = [not (one and n < largest) for one, n in zip(lonely, sizes, strict=True)]
                sums.skipped += usable.count(False)
                total = sum(itertools.compress(sizes, usable))
                if not total:
                    continue
                self.optimizers.set_learning_rates(rate)
                added = self._step(list(itertools.compress(group, usable)), total)
                try:
                    sums.add(step, added, total)
                except TrainingError as error:  # it may be the data's fault
                    first = step * self.recipe.accumulate
                    found = [broken_inputs(batch, first + i) for i, batch in enumerate(group)]
                    if not any(found):
                        raise
                    where, why = str(error).partition(":")[0], next(filter(None, found))
                    raise TrainingError(f"{where}, as {why}") from error
                if self.on_batch is not None:
                    mean = added[0] / sum(batch.size for batch in itertools.compress(group, usable))
                    self.on_batch(BatchReport(epoch + 1, step + 1, self.steps, sums.lr, mean))
        sums.read()
        # Looking at labels makes a GPU wait, so they are looked at in one epoch only.
        self.check = False
        return sums

    def _step(self, group: list[Batch], total: int) -> Tensor:
        """Do one optimizer step on batches of `total` samples over all processes.

        Returns the sums of loss, hits and penalty over this process's samples, [3].
        """
        self.objective.zero_grad()
        sums = []
        for index, batch in enumerate(group):
            with self._sync(last=index == len(group) - 1):
                loss, parts = self._forward(batch)
                assert_has_gradient(loss)
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
        share = None
        if self.recipe.mix > 0.0:
            drawn = self._mixing.beta(self.recipe.mix, self.recipe.mix)
            share = sent(torch.tensor(max(drawn, 1.0 - drawn)), self.device)
            batch = batch.mixed(share)
        check = self.compiling.prepare(batch, self.check)
        try:
            try:
                found = self._pass(batch, check, share)
            except Exception as error:
                if not self.compiling.failed(error):
                    raise
                found = self._pass(batch, self.check, share)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError(
                f"batch norm cannot train on a batch of {batch.size}: use a larger batch_size"
            ) from error
        # A loader that knows its labels needs no second look.
        seen = self.objective.output_seen
        if self.feed.classes is not None and seen is not None and seen.ndim > 1:
            self.check = self.check and self.feed.classes > seen.shape[1]
        return found

    def _pass(self, batch: Batch, check: bool, share: Tensor | None) -> tuple[Tensor, Tensor]:
        with autocast(self.precision, self.device):
            found: tuple[Tensor, Tensor] = self._model(batch, check, share)
        return found

    def _across(self, group: list[Batch]) -> tuple[list[int], list[bool]]:
        """Return each batch's size over all processes, and whether one's part is too small."""
        own = [batch.size for batch in group]
        small = [int(self._too_small(batch)) for batch in group]
        if world() > 1:
            own, small = sum_across(torch.tensor([own, small], device=self.device)).tolist()
        return own, [bool(count) for count in small]

    def _too_small(self, batch: Batch) -> bool:
        """Whether a batch norm would see one value per channel, of which there is no variance."""
        if batch.size > 1:
            return False
        form = tuple(value.shape for value in batch.inputs)
        if form not in self._small:
            with preserved_rng(self.device):
                self._small[form] = sees_one_value(self.objective.network, batch)
        return self._small[form]

    def _sync(self, *, last: bool) -> AbstractContextManager[None]:
        """Return the context in which processes exchange gradients at the last batch only."""
        if last or not isinstance(self._model, DistributedDataParallel):
            return nullcontext()
        return self._model.no_sync()
