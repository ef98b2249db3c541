"""The batches of a pass over data: which samples, whose share of them, and on which device.

What a loader is able to do is asked here: `plain()` and `take(count)` (shoal's own loaders),
`set_epoch(epoch)`, `num_samples`, `batch_size`, a length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from shoal.data.batch import Batch, split_batch
from shoal.data.loader import ImageLoader
from shoal.distributed import rank, world
from shoal.errors import DataError, OptionError

__all__ = ["Batches", "Data", "plain", "set_epoch"]


def plain(loader: Iterable[Any]) -> Iterable[Any]:
    """Return the loader's data in stored order and without augmentation, where it offers that."""
    make = getattr(loader, "plain", None)
    return make() if callable(make) else loader


def set_epoch(loader: object, epoch: int) -> None:
    """Choose the epoch that the loader, or its sampler, gives next, if it has several."""
    for part in (loader, getattr(loader, "sampler", None)):
        choose = getattr(part, "set_epoch", None)
        if choose is not None:
            choose(epoch)


@dataclass(frozen=True)
class Data:
    """A loader, and how to go over it: what a pass hands on to `Batches`."""

    loader: Iterable[Any]
    samples: int | None = None
    progress: Callable[[int, int], None] | None = None

    def batches(self, device: torch.device | None = None, *, rounds: int = 1) -> Batches:
        """Return this process's share of the batches, on a device."""
        return Batches(
            self.loader, device, samples=self.samples, progress=self.progress, rounds=rounds
        )


class Batches:
    """The batches of one pass over data, or of several; each process gets its share of them.

    A loader with `plain()` is read in stored order, without augmentation; any other one is iterated
    as it is, so it should not shuffle or augment. Every process reads the same batches and takes
    every n-th of them, whole: sums over the processes are what one process would find.

    Args:
        loader: batches as `split_batch` takes them.
        device: where the batches go; None leaves them where they are.
        samples: use only this many samples; None takes all.
        stratified: choose them in the proportions of the classes where the loader can do that
            (`take`). Otherwise they are the first ones.
        shared: False gives every process all batches.
        progress: called after each batch with the batches done and their total, 0 if not known.
        rounds: how often the data will be read in all, for `progress`.
        purpose: what the data are for, in the message about an empty loader.

    Raises:
        OptionError: `samples` is below 1.

    Attributes:
        seen: samples so far in this round, or in the last one, in all processes.
        count: how many batches a round has at most; 0 if that is not known.

    Example:
        >>> loader = [(torch.zeros(4, 2), torch.zeros(4)), (torch.ones(4, 2), torch.ones(4))]
        >>> batches = Batches(loader, samples=6)
        >>> [(number, batch.size) for number, batch in batches], batches.seen
        ([(0, 4), (1, 2)], 6)
    """

    def __init__(
        self,
        loader: Iterable[Any],
        device: torch.device | None = None,
        *,
        samples: int | None = None,
        stratified: bool = True,
        shared: bool = True,
        progress: Callable[[int, int], None] | None = None,
        rounds: int = 1,
        purpose: str = "score",
    ) -> None:
        if samples is not None and samples < 1:
            raise OptionError("samples", samples, "at least 1, or None for all")
        self._loader: Any = plain(loader)
        self._first = samples
        self._population: int | None = None  # if it is known before a round
        if samples is not None and stratified and isinstance(self._loader, ImageLoader):
            self._population = self._loader.num_samples
            self._loader, self._first = self._loader.take(samples), None
        self._device = device
        self._shared = shared
        self._progress = progress
        self._rounds, self._done = rounds, 0
        self._purpose = purpose
        self._complete = True
        self.count = _length(self._loader)
        self.seen = 0

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        """Yield this process's batches with their numbers among all, from 0; raises as `turns`."""
        return ((number, batch) for number, batch in self.turns() if batch is not None)

    def turns(self) -> Iterator[tuple[int, Batch | None]]:
        """Yield all batches that have samples with their numbers; None for another process's.

        Raises:
            DataError: the loader has no sample.
        """
        self.seen, turns = 0, 0
        for number, whole in self._chosen():
            turns = number + 1
            if whole.size == 0:
                continue
            self.seen += whole.size
            mine = not self._shared or number % world() == rank()
            yield number, whole.to(self._device) if mine else None
            if self._progress is not None:
                self._progress(self._done + turns, self.count * self._rounds)
        self._done += self.count or turns
        if self.seen == 0:
            raise DataError(f"the loader is empty: there is nothing to {self._purpose}")

    def _chosen(self) -> Iterator[tuple[int, Batch]]:
        left = self._first
        self._complete = True
        for number, raw in enumerate(self._loader):
            batch = split_batch(raw)
            if left is not None:
                self._complete = self._complete and batch.size <= left
                if left == 0:
                    return
                batch = batch.first(left)
                left -= batch.size
            yield number, batch

    @property
    def expected(self) -> int | None:
        """How many samples a round has at most; None if that is not known."""
        return min((n for n in (self._first, self._size()) if n is not None), default=None)

    @property
    def population(self) -> int | None:
        """How many samples the loader has, unused ones too; None if that is not known."""
        return self._population or (self.seen if self._complete else None)

    def _size(self) -> int | None:
        if isinstance(self._loader, ImageLoader):
            return self._loader.num_samples
        if isinstance(self._loader, list | tuple):
            return sum(split_batch(batch).size for batch in self._loader)
        size = getattr(self._loader, "batch_size", None)
        return self.count * size if isinstance(size, int) and self.count else None


def _length(loader: Any) -> int:
    try:
        return len(loader)
    except TypeError:
        return 0
