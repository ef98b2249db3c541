"""How good a network is at its task: its quality and its loss, in one process or several."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal.data.batch import Batch
from shoal.distributed import from_main, sum_across
from shoal.errors import ConfigError, DataError, OptionError
from shoal.modes import eval_mode, placed
from shoal.options.training import PRECISIONS
from shoal.passes.batches import Batches, check_whole
from shoal.seeds import preserved_rng
from shoal.tasks import Task, find_task
from shoal.tasks.classify import Classify
from shoal.tasks.task import as_points, losses_of, quality_of, rows_of, width_of


@dataclass(frozen=True)
class Evaluation:
    """How good a network is on some data.

    Attributes:
        quality: the task's, in points, higher is better: of a classifier its top-1 in percent.
        name: what that is called ("top-1").
        loss: the mean over samples; None where a quality of one's own is all that is asked for.
        samples: how many were evaluated; None likewise.
        correct: of a classifier, samples whose largest output is at the label; None otherwise.
        chance: the quality that one answer to every sample reaches; None if that is not known.
    """

    quality: float
    name: str
    loss: float | None = None
    samples: int | None = None
    correct: int | None = None
    chance: float | None = None

    @property
    def top1(self) -> float | None:
        """The accuracy of a classifier, in percent; None for other tasks."""
        return self.quality if self.correct is not None else None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def evaluate(
    network: nn.Module,
    loader: Iterable[Any],
    *,
    task: str | Task = "classify",
    device: torch.device | str | None = None,
    precision: str = "fp32",
    limit: int | None = None,
) -> Evaluation:
    """Return quality and loss of `network` in eval mode.

    A loader with `plain()` (shoal's own) is read without shuffling and augmentation. Of several
    processes each evaluates every n-th batch and gets the result of one process. For that, the
    loader must give all of them the same batches: do not shuffle or shard it. The
    quality of a task with a `judge` is what that returns in the main process.

    Args:
        network: its training flags, and the global random state, are the same afterwards.
        loader: batches of inputs and targets.
        task: what the network is for: a name, with options as in "segment?ignore_index=0", or a
            `Task`.
        device: where to evaluate; None means where the network is. The network goes back.
        precision: "fp32", "bf16", "fp16" or "auto", as in a recipe.
        limit: use the first samples only, this many.

    Raises:
        DataError: there is no sample, a target does not fit the network's output, or an input that
            makes the output NaN is NaN itself.
        TrainingError: what the network returns does not show which tensor is meant.
        ConfigError: `limit` is below 1, the device cannot compute in `precision`, or the quality of
            a task of the user's is no finite number.

    Example:
        >>> import torch
        >>> from shoal.training import evaluate
        >>> logits, labels = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1, 0, 0])
        >>> found = evaluate(torch.nn.Identity(), [(logits, labels)], task="binary")
        >>> found.name, round(found.quality, 1)
        ('accuracy', 66.7)
    """
    if limit is not None and limit < 1:
        raise OptionError("limit", limit, "at least 1 sample, or None for all")
    chosen = find_task(task)
    # Not inference_mode: what a module keeps from such a pass (a table of positions, say) could not
    # take part in training later.
    with (
        placed(network, device) as where,
        eval_mode(network),
        preserved_rng(where),
        torch.no_grad(),
    ):
        if chosen.judge is not None:
            # Each process judges by itself, and what follows from it must be alike in all.
            found = from_main(chosen.judge(network, loader))
            own = getattr(chosen, "own", {}).get("evaluate")  # a function beside the task
            who = f"judge of the task '{chosen.name}'" if own is None else "evaluate"
            return Evaluation(as_points(found, who), chosen.quality_name)
        batches = Batches(loader, where, samples=limit, stratified=False, purpose="evaluate on")
        return _evaluated(network, batches, chosen, resolve_precision(precision, where))


def _evaluated(network: nn.Module, batches: Batches, task: Task, precision: str) -> Evaluation:
    check_whole(batches.loader)
    losses, rows, before = [], [], 0
    for number, batch in batches.turns():
        loss = 0.0  # zeros for another process's
        if batch is not None:
            loss, found = judged(network, batch, task, precision, number)
            rows.append((before, found))
        losses.append(loss)
        before = batches.seen
    # Each entry comes from one process, so that the sum over processes rounds nothing.
    width = from_main(width_of(task, (found for _, found in rows)))
    table = torch.zeros(batches.seen, width, dtype=torch.float64)
    for start, found in rows:
        table[start : start + len(found)] = found
    table = sum_across(table)
    total = sum_across(torch.tensor(losses, dtype=torch.float64)).sum()
    quality, chance = quality_of(task, table), task.chance(table)
    is_classifier = task.quality_name == Classify.quality_name
    return Evaluation(
        quality=quality,
        name=task.quality_name,
        loss=float(total) / batches.seen,
        samples=batches.seen,
        correct=int(table[:, 0].sum()) if is_classifier else None,
        chance=None if chance is None else as_points(chance, f"chance of the task '{task.name}'"),
    )


def judged(
    network: nn.Module, batch: Batch, task: Task, precision: str = "fp32", number: int = 0
) -> tuple[float, Tensor]:
    """Return the sum of a batch's losses, and the rows of its samples for the task's quality.

    The network is in eval mode and on the batch's device; errors are those of `evaluate`, which
    call the batch by its number.
    """
    with autocast(precision, batch.inputs[0].device):
        output = task.output(network(*batch.args, **batch.kwargs))
    target = task.check(output, batch.target)
    if isinstance(output, Tensor) and bool(output.isnan().any()):
        broken = broken_inputs(batch, number)
        if broken:
            raise DataError(broken)
    loss = float(losses_of(task, output, target, batch.size).sum())
    return loss, rows_of(task, output, target, batch.size)


def broken_inputs(batch: Batch, number: int) -> str:
    """Return which samples of the batch of this number hold NaN, in one line; "" if none does."""
    for value in batch.inputs:
        broken = value.isnan().flatten(1).any(1) if value.ndim > 1 else value.isnan()
        if bool(broken.any()):
            return (
                f"sample {int(broken.nonzero()[0])} of batch {number} (from 0) holds NaN, and "
                f"{int(broken.sum())} of the {batch.size} in that batch do: leave them out, or "
                "repair them"
            )
    return ""


def resolve_precision(asked: str, device: torch.device) -> str:
    """Return "fp32", "bf16" or "fp16" for what was `asked` on `device`.

    "auto" is what `accelerate launch --mixed_precision` asked for, if it did; otherwise bf16 where
    the hardware computes in it (AVX512-BF16 or AMX on CPUs, CUDA from Ampere on), else fp32. Only
    CUDA takes fp16: its small range needs loss scaling, and a CPU gains nothing by it.
    """
    if asked not in PRECISIONS:
        raise ConfigError(f"precision is {asked!r}: choose one of {', '.join(PRECISIONS)}")
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "auto")
    chosen = launched if asked == "auto" else asked
    if chosen not in ("fp32", "bf16", "fp16"):
        chosen = "bf16" if _has_bf16(device) else "fp32"
    if chosen == "fp16" and device.type != "cuda":
        raise ConfigError(
            f"precision 'fp16' needs a CUDA device, not '{device.type}': use 'bf16' or 'fp32'"
        )
    return chosen


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a forward pass computes in `precision` (resolved).

    Weights stay fp32; autocast converts on the way.
    """
    if precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)


def _has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 in hardware (emulation is slower than fp32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # These are private names of torch: one that disappears means "not known", so fp32.
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, bool)() for name in probes)
    return False
