"""A pass over data: which samples, whose share of them, on which device; and who observes it.

What a loader is able to do is asked here: `plain()` and `take(count)` (shoal's own loaders),
`set_epoch(epoch)`, `num_samples`, `batch_size`, a length.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import chain, islice
from typing import Any, Protocol

import torch
from torch.utils.data.distributed import DistributedSampler
from torch.utils.hooks import RemovableHandle

from shoal.data.batch import Batch, batch_count, split_batch
from shoal.data.loader import ImageLoader
from shoal.distributed import rank, world
from shoal.errors import DataError, OptionError
from shoal.modes import device_of, eval_mode
from shoal.network import Network
from shoal.passes.pieces import in_pieces, samples_at_once


def plain(loader: Iterable[Any]) -> Iterable[Any]:
    """Return the loader's data in stored order and without augmentation, where it offers that."""
    make = getattr(loader, "plain", None)
    return make() if callable(make) else loader


def set_epoch(loader: object, epoch: int) -> None:
    """Choose the epoch that the loader, or its sampler, gives next, if it has several."""
    batches = getattr(loader, "batch_sampler", None)
    own = getattr(batches, "sampler", None)
    for part in (loader, getattr(loader, "sampler", None), batches, own):
        choose = getattr(part, "set_epoch", None)
        if choose is not None:
            choose(epoch)


def is_sharded(loader: object) -> bool:
    """Whether a loader gives each of several processes samples of its own already."""
    batches = getattr(loader, "batch_sampler", None)
    samplers = getattr(loader, "sampler", None), getattr(batches, "sampler", None)
    return any(isinstance(s, DistributedSampler) and s.num_replicas > 1 for s in samplers)


def check_whole(loader: object) -> None:
    """Raise `DataError` if a loader that is to be judged on gives a part of its samples alone."""
    if is_sharded(loader):
        raise DataError(
            "the data to evaluate on have a DistributedSampler: give a loader of all samples, "
            "which shoal shares among the processes itself"
        )


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


@dataclass
class Batches:
    """The batches of one pass over data, or of several; each process gets its share of them.

    A loader with `plain()` is read in stored order, without augmentation; any other one is iterated
    as it is, so it should not shuffle or augment. Every process reads the same batches and takes
    every n-th of them, whole: sums over the processes are what one process would find.

    Attributes:
        seen: samples so far in this round, or in the last one, in all processes.
        count: how many batches a round has at most; 0 if that is not known.

    Example:
        >>> loader = [(torch.zeros(4, 2), torch.zeros(4)), (torch.ones(4, 2), torch.ones(4))]
        >>> batches = Batches(loader, samples=6)
        >>> [(number, batch.size) for number, batch in batches], batches.seen
        ([(0, 4), (1, 2)], 6)
    """

    loader: Any  # batches as `split_batch` takes them
    device: torch.device | None = None  # where they go; None leaves them where they are
    _: KW_ONLY
    samples: int | None = None  # use only this many
    # In the proportions of the classes where the loader can do that (`take`), or the first ones.
    stratified: bool = True
    shared: bool = True  # False gives every process all batches
    progress: Callable[[int, int], None] | None = None  # gets batches done, their total or 0
    rounds: int = 1  # how often the data will be read in all, for `progress`
    purpose: str = "score"  # what the data are for, in the message about an empty loader

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise OptionError("samples", self.samples, "at least 1, or None for all")
        self.loader = plain(self.loader)
        self._population: int | None = None  # if it is known before a round
        if self.samples is not None and self.stratified and isinstance(self.loader, ImageLoader):
            self._population = self.loader.num_samples
            self.loader, self.samples = self.loader.take(self.samples), None
        self._done = 0
        self._complete = True
        self.seen, self.count = 0, batch_count(self.loader) or 0

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        """Yield this process's batches with their numbers among all, from 0."""
        return ((number, batch) for number, batch in self.turns() if batch is not None)

    def turns(self) -> Iterator[tuple[int, Batch | None]]:
        """Yield all batches that have samples with their numbers; None for another process's."""
        self.seen, turns = 0, 0
        for number, whole in self._chosen():
            turns = number + 1
            if whole.size == 0:
                continue
            self.seen += whole.size
            mine = not self.shared or number % world() == rank()
            yield number, whole.to(self.device) if mine else None
            if self.progress is not None:
                self.progress(self._done + turns, self.count * self.rounds)
        self._done += self.count or turns
        if self.seen == 0:
            if isinstance(self.loader, Iterator):
                raise DataError(
                    "the loader is an iterator that is used up: give a list or a DataLoader, which "
                    "can be read again"
                )
            raise DataError(f"the loader is empty: there is nothing to {self.purpose}")

    def _chosen(self) -> Iterator[tuple[int, Batch]]:
        left = self.samples
        self._complete = True
        for number, raw in enumerate(self.loader):
            batch = split_batch(raw)
            if left is not None:
                self._complete = self._complete and batch.size <= left
                if left == 0:
                    return
                batch = batch if batch.size <= left else batch.first(left)
                left -= batch.size
            yield number, batch

    @property
    def expected(self) -> int | None:
        """How many samples a round has at most; None if that is not known."""
        return min((n for n in (self.samples, self._size()) if n is not None), default=None)

    @property
    def population(self) -> int | None:
        """How many samples the loader has, unused ones too; None if that is not known."""
        return self._population or (self.seen if self._complete else None)

    def _size(self) -> int | None:
        if isinstance(self.loader, ImageLoader):
            return self.loader.num_samples
        if isinstance(self.loader, list | tuple):
            return sum(split_batch(batch).size for batch in self.loader)
        size = getattr(self.loader, "batch_size", None)
        return self.count * size if isinstance(size, int) and self.count else None


class Observer(Protocol):
    """Collects figures while a network runs in eval mode.

    First `attach` is called, then `begin` before each batch of this process, and `finish` once at
    the end, in every process. One that sets `in_pieces` lets the network run on a batch in several
    pieces, each after a call of `piece`; hooks then see these. That is faster where the tensors of
    a whole batch are large.
    """

    in_pieces: bool = False

    @abstractmethod
    def attach(self, network: Network) -> Sequence[RemovableHandle]:
        """Forget earlier figures, put hooks on the network and return their handles."""

    @abstractmethod
    def begin(self, index: int, batch: Batch) -> None:
        """Get ready for the batch that runs next; `index` is its number among all batches."""

    def piece(self, first: int, size: int) -> None:
        """Get ready for `size` samples of the batch from number `first`, which run next."""

    @abstractmethod
    def finish(self, samples: int, population: int | None) -> None:
        """Sum over the processes, by `shoal.distributed.sum_across`.

        `samples` of `population` samples were used, in all processes; None if that is not known.
        """


def observe(
    network: Network,
    loader: Iterable[Any],
    observers: Sequence[Observer],
    *,
    samples: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Run the network in eval mode over the data, once, with all observers attached.

    Data, samples and progress are as for `Batches`; targets are not used. The network's training
    flags are restored. Returns the number of samples, over all processes.
    """
    batches = Batches(loader, device_of(network), samples=samples, progress=progress)
    cut = all(observer.in_pieces for observer in observers)
    handles: list[RemovableHandle] = []
    try:
        # Not inference_mode: what a module keeps from such a pass (a table of positions, say)
        # could not take part in training later.
        with eval_mode(network), torch.no_grad():
            mine = iter(batches)
            first = list(islice(mine, 1))
            # Before any hook is there: it tries some samples out.
            at_once = samples_at_once(network, first[0][1]) if first and cut else None
            for observer in observers:
                handles += observer.attach(network)
            for number, batch in chain(first, mine):
                for observer in observers:
                    observer.begin(number, batch)
                for start, piece in in_pieces(batch, at_once or batch.size):
                    for observer in observers:
                        observer.piece(start, piece.size)
                    network(*piece.args, **piece.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    for observer in observers:
        observer.finish(batches.seen, batches.population)
    return batches.seen
