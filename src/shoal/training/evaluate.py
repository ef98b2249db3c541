"""Accuracy and loss of a network on a loader: the same numbers on any number of processes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from shoal.data.batch import Batch
from shoal.distributed import sum_across
from shoal.errors import OptionError
from shoal.modes import eval_mode, placed
from shoal.passes.batches import Batches
from shoal.seeds import preserved_rng
from shoal.training.losses import check_targets, count_hits, logits_of, sample_losses
from shoal.training.precision import autocast, resolve_precision

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """How good a network is on some data.

    Attributes:
        top1: accuracy in percent.
        loss: mean cross-entropy per sample, in nats.
        samples: number of samples.
        correct: number of samples whose largest output is at the label.
    """

    top1: float
    loss: float
    samples: int
    correct: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def evaluate(
    network: nn.Module,
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    limit: int | None = None,
) -> Evaluation:
    """Return accuracy and loss of `network` in eval mode.

    A loader with `plain()` (shoal's own) is read without shuffling and augmentation. Under several
    processes each one evaluates every n-th batch and the sums are put together in the order of the
    batches, so that the result is that of one process; all processes get it. For that, the loader
    must give all of them the same batches: do not shuffle or shard it.

    Args:
        network: a classifier; its training flags, and the global random state, are the same
            afterwards.
        loader: batches of inputs and labels.
        device: where to evaluate; None means where the network is. The network goes back.
        precision: "fp32", "bf16", "fp16" or "auto", as in a recipe.
        limit: use the first samples only, this many.

    Raises:
        DataError: there is no sample, or a label is outside the network's outputs.
        ConfigError: `limit` is below 1, or the device cannot compute in `precision`.
    """
    if limit is not None and limit < 1:
        raise OptionError("limit", limit, "at least 1 sample, or None for all")
    with ExitStack() as stack:
        where = stack.enter_context(placed(network, device))
        stack.enter_context(eval_mode(network))
        stack.enter_context(preserved_rng(where))
        # Not inference_mode: what a module keeps from such a pass (a table of positions, say)
        # could not take part in training later.
        stack.enter_context(torch.no_grad())
        chosen = resolve_precision(precision, where)
        batches = Batches(loader, where, samples=limit, stratified=False, purpose="evaluate on")
        rows = [  # loss and hits of each batch; zeros for another process's
            (0.0, 0.0) if batch is None else _measure(network, batch, where, chosen)
            for _, batch in batches.turns()
        ]
    # Each row comes from one process, so that the sum over processes rounds nothing.
    table = sum_across(torch.tensor(rows, dtype=torch.float64))
    loss, hits = table.sum(dim=0).tolist()
    samples = batches.seen
    return Evaluation(100.0 * hits / samples, loss / samples, samples, int(hits))


def _measure(
    network: nn.Module, batch: Batch, device: torch.device, precision: str
) -> tuple[float, float]:
    with autocast(precision, device):
        logits = logits_of(network(*batch.args, **batch.kwargs))
    check_targets(logits, batch.target)
    assert batch.target is not None  # check_targets has seen to it; this tells mypy
    loss = sample_losses(logits, batch.target).sum()
    return float(loss), float(count_hits(logits, batch.target))
