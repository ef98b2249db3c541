"""Rehearsal: what moves cost once the network has been fine-tuned a little.

What a move costs before any training says little of what it costs after: a dropped block costs a
hundred times what a fitted layer in its place does, and after an epoch three times
(docs/measured.md). A few dozen optimizer steps tell the kinds of moves apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.data.batch import Batch
from shoal.errors import TrainingError
from shoal.modes import device_of, eval_mode
from shoal.network import Network
from shoal.passes.batches import Batches, set_epoch
from shoal.search.moves import Move
from shoal.training.objective import logits_of, sample_losses

__all__ = ["FirstBatches", "rehearsed_costs"]


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


def rehearsed_costs(
    network: Network,
    moves: Sequence[Move],
    make: Callable[[Move, Network], object],
    rehearse: Callable[[Network], object],
    data: Iterable[Any],
    *,
    samples: int | None,
    metric: str,
    progress: Callable[[int, int], None],
) -> dict[str, tuple[float, float]]:
    """Make each move alone, fine-tune briefly, and compare with the network fine-tuned likewise.

    Args:
        network: is left as it is.
        moves: of this network.
        make: makes a move in place.
        rehearse: fine-tunes a network in place, always alike.
        data: training batches; read without shuffling and augmentation where the loader can.
        samples: compare on so many of them; None takes all.
        metric: "loss" in nats, or "accuracy" in points.
        progress: called with the number of trials done and their total.

    Returns:
        By the moves' titles the cost, and its standard error as an estimate for other data. Moves
        with which the network cannot be trained are left out.

    Raises:
        TrainingError: the network cannot be trained with any of them.
    """
    device = device_of(network)
    batches = [batch for _, batch in Batches(data, device, samples=samples, shared=False)]
    unchanged = _trained_costs(network, None, make, rehearse, batches, metric)
    found: dict[str, tuple[float, float]] = {}
    failed = TrainingError("there is no move to try")
    for done, move in enumerate(moves, start=1):
        try:
            above = _trained_costs(network, move, make, rehearse, batches, metric) - unchanged
            spread = float(above.std()) if len(above) > 1 else 0.0
            found[move.title] = float(above.mean()), spread / math.sqrt(len(above))
        except TrainingError as error:
            failed = error
        progress(done, len(moves))
    if not found:
        raise failed
    return found


def _trained_costs(
    network: Network,
    move: Move | None,
    make: Callable[[Move, Network], object],
    rehearse: Callable[[Network], object],
    batches: Sequence[Batch],
    metric: str,
) -> Tensor:
    """Return each sample's cost, in float64, after the move and the rehearsal."""
    trial = network.copy()
    if move is not None:
        make(move, trial)
    rehearse(trial)
    costs = []
    with eval_mode(trial), torch.no_grad():
        for batch in batches:
            logits, target = logits_of(trial(*batch.args, **batch.kwargs)), batch.target
            assert target is not None  # scoring has seen to it; this tells mypy
            wanted = target.argmax(dim=1) if target.is_floating_point() else target
            wrong = 100.0 * (logits.argmax(dim=1) != wanted)
            costs.append(wrong if metric == "accuracy" else sample_losses(logits, target))
    return torch.cat(costs).double().cpu()
