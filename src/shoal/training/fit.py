"""Fine-tuning: train a network in place, reproducibly, and survive an interruption."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.distributed import (
    barrier,
    broadcast_buffers,
    default_device,
    ensure_initialised,
    from_main,
    is_main,
    sum_across,
    world,
)
from shoal.errors import ConfigError, DataError, OptionError, ShoalError, TrainingError
from shoal.modes import eval_mode, kept_flags, make_channels_last, placed
from shoal.network.inputs import resolve_device
from shoal.onednn import safe_convolutions
from shoal.options import Recipe, find_recipe
from shoal.seeds import preserved_rng
from shoal.tasks import Loss, Task, find_task, with_own
from shoal.tasks.custom import identity_of
from shoal.training.checkpoint import read_checkpoint, write_checkpoint
from shoal.training.evaluate import evaluate, resolve_precision
from shoal.training.feed import Feed
from shoal.training.objective import Hooks, Objective, Values
from shoal.training.reports import BatchReport, EpochReport, FitReport, best_epoch
from shoal.training.trainer import Trainer


# Long because each of its arguments is explained; the body is short.
def fit(
    network: nn.Module,
    train: Any,
    *,
    epochs: int,
    recipe: Recipe | str | Mapping[str, Any] | None = None,
    seed: int = 0,
    first_epoch: int = 0,
    val: Any = None,
    teacher: nn.Module | None = None,
    task: str | Task = "classify",
    loss: Loss | None = None,
    checkpoint: Path | str | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    on_batch: Callable[[BatchReport], None] | None = None,
    device: torch.device | str | None = None,
    accelerator: Any = None,
    penalty: Callable[[nn.Module, Values], Tensor] | None = None,
    at: Iterable[str] = (),
    groups: Callable[[nn.Module], Iterable[Mapping[str, Any]]] | None = None,
    after_step: Callable[[nn.Module], object] | None = None,
    after_epoch: Callable[[nn.Module], bool] | None = None,
    memory: dict[str, Any] | None = None,
) -> FitReport:
    """Train `network` in place, and return losses, qualities and times per epoch.

    Afterwards the network is on the device it was trained on, unwrapped, in fp32, with the
    training flags it came with; its 4-D weights are channels-last if the recipe says so, which
    changes no number. Parts that are in eval mode while the network is not, such as frozen norms,
    stay in it. The global random state of Python, NumPy and torch is untouched.

    Everything random follows from `seed` and the number of the epoch. So the same call gives the
    same weights, bit for bit on a CPU, and a fit that goes on from a checkpoint ends like one that
    was never interrupted. On GPUs both hold as far as cuDNN's kernels are deterministic.

    Under `accelerate launch` or `torchrun` every process calls this and ends with the same
    weights. Global batch and gradient are those of one process, but batch norm normalises with each
    process's part of the batch and its running statistics are those of the main process, and a
    recipe's `mix` pairs the samples of that part. Random layers such as dropout draw the same
    numbers in each process.

    If the fit fails with a `ShoalError`, the network has its weights from before; if something
    else stops it (a callback, Ctrl-C), those of the moment.

    Args:
        network: any module; each call builds its own optimizer.
        train: iterable of batches with a length; a `set_epoch` of it is called before each epoch.
        epochs: how many, from 0.
        recipe: a `Recipe`, the name of one in `recipes`, a mapping of its options, or None for
            "finetune".
        seed: decides all that is random, but for what the loader draws by its own seed.
        first_epoch: number that the loader's `set_epoch` gets at the first epoch. Fits on the same
            data count on, or each would see the same random changes of the images.
        val: validation batches, evaluated in fp32 after every epoch; needed for early stopping.
        teacher: network to distil from, left as it came; needed if the recipe's `distill` is set.
        task: what the network is for, as `evaluate` takes it.
        loss: called with what the network returns and the target, in place of the task's loss;
            returns the mean over the batch or one loss per sample.
        checkpoint: file that is rewritten after every epoch, and left at the end. If it is there at
            the start, the fit goes on from it; if it is damaged or belongs to another fit (shapes,
            recipe, epochs, seed, first epoch, number of batches, task and its options, names of the
            hooks and of the user's loss and quality), the fit starts over and the report notes it.
        on_epoch: called in every process after each epoch, when the checkpoint is written.
        on_batch: called in every process after each optimizer step.
        device: where to train; None takes accelerate's choice, a GPU if there is one.
        accelerator: an `accelerate.Accelerator` whose device, and whose mixed precision if the
            recipe says "auto", are used.
        penalty: called in every forward pass with the network and the values at the places that
            `at` names; returns a scalar that is added to the mean loss of the batch. It counts once
            per optimizer step: batches' penalties are averaged by their sizes. Reports give it
            apart from the loss. Like `after_step` it may depend on what it is given and on torch's
            random numbers only, or a fit that goes on from a checkpoint would end differently.
        at: names of places. Of a site the penalty gets the tensor that goes into the rectifier; of
            a block or stretch a pair, what goes in and what comes out (of the addition). The
            tensors carry gradients, in the precision of the forward pass.
        groups: called with the network; returns groups of parameters with settings of their own:
            `{"params": [...], "lr": ..., "weight_decay": ..., "momentum": ..., "nesterov": ...,
            "optimizer": "sgd", "constant": False}`, all but "params" optional. What is left out is
            as in the recipe, but another optimizer than the recipe's has no momentum unless the
            group says so. The learning rate follows the recipe's schedule from its own peak, or
            stays if "constant" is true. The gradient is clipped as a whole.
        after_step: called with the network after each optimizer step, without gradients, to apply
            masks or to clamp parameters.
        after_epoch: called with the network after each epoch; the fit ends where it returns True.
        memory: JSON values that the hooks change and read; a fit that goes on from a checkpoint
            finds in it what they had left there.

    Raises:
        ConfigError: options that do not go together, or that the device cannot do.
        DataError: the loader is empty, targets do not fit the network, or inputs hold NaN.
        TrainingError: the loss or a weight is not finite, or there is nothing to train.
        NameNotFoundError: there is no recipe, or no place, of that name.

    Example:
        >>> net, batches = nn.Linear(2, 2), [(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]))]
        >>> report = fit(net, batches, epochs=2, penalty=lambda net, _: net.weight.square().sum())
        >>> len(report.epochs), report.epochs[0].penalty > report.epochs[1].penalty
        (2, True)
    """
    plan, goal = find_recipe(recipe), with_own(find_task(task), loss)
    if not hasattr(seed, "__index__"):
        raise OptionError("seed", seed, "a whole number")
    seed = operator.index(seed)
    hooks = Hooks(penalty, tuple(at), groups, after_step, after_epoch,
                  {} if memory is None else memory)  # fmt: skip
    where = _device(device, accelerator)
    own = getattr(accelerator, "mixed_precision", "no")
    asked = own if plan.precision == "auto" and own in ("bf16", "fp16") else plan.precision
    precision = resolve_precision(asked, where)
    _check(network, plan, goal, epochs=epochs, val=val, teacher=teacher)
    start = _cpu_state(network)
    try:
        with ExitStack() as stack:
            stack.enter_context(preserved_rng(where))
            stack.enter_context(kept_flags(network))
            if teacher is not None:
                stack.enter_context(placed(teacher, where))
                stack.enter_context(eval_mode(teacher))
            network.to(where)
            if plan.channels_last:
                make_channels_last(network)
            feed = Feed(train, seed, where, plan.channels_last, first_epoch)
            stack.callback(feed.close)
            objective = Objective(network, plan, goal, teacher, hooks)
            trainer = Trainer(objective, feed, epochs, precision, on_batch)
            run = _Run(trainer, None if checkpoint is None else Path(checkpoint))
            notes = stack.enter_context(safe_convolutions(network))
            report = run.finish(val, on_epoch)
            return replace(report, notes=(*report.notes, *trainer.compiling.notes, *notes))
    except ShoalError:
        network.load_state_dict(start)
        raise


class _Run:
    """The epochs of a fit, and the file that lets an interrupted one go on.

    The file is written whole or not at all, and never trusted: one that is damaged or belongs to
    another fit is replaced after the first epoch.
    """

    def __init__(self, trainer: Trainer, path: Path | None) -> None:
        self.trainer = trainer
        self.network = trainer.objective.network
        self.recipe = trainer.recipe
        self.path = path
        self.history: list[EpochReport] = []
        self.skipped = 0
        self.best: dict[str, Any] | None = None
        self.ended = False  # by a hook
        # What a checkpoint must agree on with the fit that goes on from it.
        self._identity = {
            "recipe": self.recipe.identity(),
            "shapes": {name: list(p.shape) for name, p in self.network.named_parameters()},
            "hooks": trainer.hooks.names(),
            "task": trainer.objective.task.name,
            "epochs": trainer.epochs,
            "seed": trainer.feed.seed,
            "first_epoch": trainer.feed.first_epoch,
            "batches": len(trainer.feed),
        }
        of_task = identity_of(trainer.objective.task)
        if of_task:
            self._identity["of_task"] = of_task

    def finish(self, val: Any, on_epoch: Callable[[EpochReport], None] | None) -> FitReport:
        """Train the epochs that are left and return the report of all."""
        trainer = self.trainer
        resumed, note = self._resume()
        hook = trainer.hooks.after_epoch
        while len(self.history) < trainer.epochs and not self.ended and not self._stalled():
            report = self._epoch(val)
            # One that looks at the clock, say, may answer otherwise in another process.
            self.ended = hook is not None and from_main(bool(hook(self.network)))
            self.history.append(report)
            if self.recipe.early_stop and best_epoch(self.history) == report.epoch:
                self.best = _cpu_state(self.network)
            self._save()
            if on_epoch is not None:
                on_epoch(report)
        self.network.zero_grad()
        chosen = None if self.best is None else best_epoch(self.history)
        if self.best is not None and chosen != len(self.history):
            self.network.load_state_dict(self.best)
        return FitReport(
            epochs=tuple(self.history),
            seconds=sum(report.seconds for report in self.history),
            stopped_early=len(self.history) < trainer.epochs,
            best_epoch=chosen,
            skipped_batches=self.skipped,
            resumed_from=resumed,
            precision=trainer.precision,
            device=str(trainer.feed.device),
            notes=() if note is None else (f"checkpoint {note}: started over",),
        )

    def _epoch(self, val: Any) -> EpochReport:
        begin = time.perf_counter()
        trainer = self.trainer
        number = len(self.history)
        sums = trainer.train_epoch(number)
        if sums.samples == 0:
            raise DataError("the training loader yields no sample: check the data and batch_size")
        _check_weights(self.network, number + 1)
        broadcast_buffers(self.network)
        self.skipped += sums.skipped
        judged = None if val is None else evaluate(self.network, val, task=trainer.objective.task)
        return EpochReport(
            epoch=number + 1,
            seconds=time.perf_counter() - begin,
            loss=sums.loss / sums.samples,
            lr=sums.lr,
            train_hits=None if math.isnan(sums.hits) else 100.0 * sums.hits / sums.samples,
            val_quality=None if judged is None else judged.quality,
            val_loss=None if judged is None else judged.loss,
            penalty=sums.penalty / sums.samples if trainer.hooks.penalty is not None else None,
        )

    def _stalled(self) -> bool:
        """Whether the validation quality has not improved for long enough to stop."""
        patience = self.recipe.early_stop
        return patience is not None and len(self.history) - best_epoch(self.history) >= patience

    def _save(self) -> None:
        """Write the checkpoint in one piece; the main process writes, the others wait."""
        if self.path is None:
            return
        state = {
            "network": _cpu_state(self.network),
            "optimizers": [each.state_dict() for each in self.trainer.optimizers.each],
            "scaler": self.trainer.scaler.state_dict(),
            "history": [report.to_dict() for report in self.history],
            "skipped": self.skipped,
            "best": self.best,
            "ended": self.ended,
            "memory": self.trainer.hooks.memory,
        }
        if is_main():
            write_checkpoint(self.path, self._identity, state)
        barrier()

    def _resume(self) -> tuple[int | None, str | None]:
        """Go on from the checkpoint; return the epochs it brings, and a note if it is of no use."""
        if self.path is None:
            return None, None
        state, note = read_checkpoint(self.path, self._identity)
        readers = int(sum_across(torch.tensor(int(state is not None))))
        if 0 < readers < world():
            return None, f"{self.path.name} is not readable by every process"
        if state is None:
            return None, note
        try:
            self.network.load_state_dict(state["network"])
            for each, own in zip(self.trainer.optimizers.each, state["optimizers"], strict=True):
                each.load_state_dict(own)
            self.trainer.scaler.load_state_dict(state["scaler"])
            self.history = [EpochReport(**values) for values in state["history"]]
            self.skipped = state["skipped"]
            self.best = state["best"]
            self.ended = state.get("ended", False)  # not in those of earlier versions
            self.trainer.hooks.memory.update(state.get("memory", {}))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise TrainingError(
                f"'{self.path}' is no state of this training: remove it, and train again"
            ) from error
        return len(self.history), None


def _cpu_state(network: nn.Module) -> dict[str, Any]:
    """Return a copy of the network's state on the CPU."""
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
        for name, value in network.state_dict().items()
    }


def _check_weights(network: nn.Module, epoch: int) -> None:
    """Check that weights are finite: the loss only shows what the step before made of them."""
    named = list(network.named_parameters())
    finite = torch.stack([torch.isfinite(value.detach()).all() for _, value in named]).tolist()
    for (name, _), fine in zip(named, finite, strict=True):
        if not fine:
            raise TrainingError(
                f"{name} is not finite after epoch {epoch}: use a lower learning rate (or "
                "clip_norm); the network has its weights from before the fit"
            )


def _device(device: torch.device | str | None, accelerator: Any) -> torch.device:
    """Return where to train; brings the process group up."""
    kind = getattr(accelerator, "distributed_type", None)
    kind = str(getattr(kind, "value", kind))
    if kind in {"FSDP", "DEEPSPEED", "MEGATRON_LM", "TP"}:
        raise ConfigError(
            f"shoal trains with plain data parallelism, not {kind}: start accelerate without it"
        )
    try:
        chosen = None if device is None else torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device is {device!r}: give 'cpu', 'cuda' or 'cuda:0'") from None
    ensure_initialised(chosen)
    if chosen is not None:
        resolve_device(chosen)  # it must be here; its index is accelerate's to choose
        return chosen
    return accelerator.device if accelerator is not None else default_device()


def _check(
    network: nn.Module,
    recipe: Recipe,
    task: Task,
    *,
    epochs: int,
    val: Any,
    teacher: nn.Module | None,
) -> None:
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 0:
        raise OptionError("epochs", epochs, "a whole number of at least 0")
    if recipe.early_stop is not None and val is None:
        raise ConfigError("early_stop needs validation data: give val, or set early_stop=None")
    if recipe.distill > 0 and teacher is None:
        raise ConfigError(f"distill is {recipe.distill:g} but there is no teacher: give one")
    if teacher is not None and recipe.distill == 0:
        raise ConfigError("a teacher is given but distill is 0: set the recipe's distill, up to 1")
    if teacher is not None and not task.has_divergence:
        raise ConfigError(
            f"the task '{task.name}' has no distance between outputs to learn from a teacher by: "
            "set distill to 0 and omit the teacher"
        )
    if teacher is network:
        raise ConfigError("the teacher is the network itself: give a copy of it")
    for name, parameter in network.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise TrainingError(
                f"parameter {name} is {parameter.dtype}: call network.float() before training "
                "(the recipe's precision is for the arithmetic)"
            )
