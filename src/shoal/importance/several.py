"""Score by several criteria, with as few passes over the data as they need."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from shoal.data.batch import Batch
from shoal.importance.criterion import Criterion, OnePass
from shoal.importance.scores import Scores
from shoal.network import Network
from shoal.passes.batches import Data
from shoal.passes.observe import Observer

__all__ = ["score_by", "score_several"]


def score_several(
    network: Network,
    loader: Iterable[Any],
    chosen: Sequence[Criterion],
    *,
    samples: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Scores]:
    """Score by several criteria; those with equal `needs` share their passes.

    Args:
        network: the captured network.
        loader: the data, unshuffled and without augmentation; it is gone over repeatedly.
        chosen: fresh criteria; see `make_criterion`.
        samples: use only this many samples.
        progress: called with the batches done and their total, from 0 again for each pass.

    Returns:
        The scores in the order of the criteria.
    """
    groups: dict[Hashable, list[Criterion]] = {}
    for criterion in chosen:
        alone = ("alone", id(criterion))
        groups.setdefault(criterion.needs or alone, []).append(criterion)
    data = Data(loader, samples, progress)
    by_criterion: dict[int, Scores] = {}
    for group in groups.values():
        every = type(group[0]).compute_together(group, network, data)
        for criterion, scores in zip(group, every, strict=True):
            by_criterion[id(criterion)] = replace(scores, unit=scores.unit or criterion.unit)
    return [by_criterion[id(criterion)] for criterion in chosen]


def score_by(
    criterion: Criterion,
    network: Network,
    loader: Iterable[Any],
    *,
    samples: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    beside: Sequence[Observer] = (),
) -> Scores:
    """Score by a fresh criterion; arguments and errors as for `shoal.score`.

    Args:
        criterion: as `make_criterion` or `criterion_for` gives it.
        network: is left as it is.
        loader: the data.
        samples: use only this many samples.
        progress: called with the batches done and their total.
        beside: what else observes the data, in the same pass where the criterion needs just one.
    """
    chosen = [criterion, *map(_Beside, beside)]
    return score_several(network, loader, chosen, samples=samples, progress=progress)[0]


class _Beside(OnePass):
    """An observer that takes part in the criteria's pass and scores nothing itself."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer

    @override
    def attach(self, network: Network) -> Sequence[RemovableHandle]:
        return self._observer.attach(network)

    @override
    def begin(self, index: int, batch: Batch) -> None:
        self._observer.begin(index, batch)

    @override
    def finish(self, samples: int, population: int | None) -> None:
        self._observer.finish(samples, population)

    @override
    def scores(self) -> Scores:
        return Scores(self.name, {}, 0)
