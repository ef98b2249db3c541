"""The batches of a fit, epoch by epoch: what each process gets of them follows from the seed alone.

accelerate would split foreign loaders too, but it fills up short batches, or leaves them out, and
two processes would not train on the batches of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from shoal.data.batch import Batch, split_batch, training_batches
from shoal.data.loader import ImageLoader
from shoal.distributed import rank, world
from shoal.errors import DataError
from shoal.passes.batches import is_sharded, set_epoch
from shoal.seeds import derive_seed, seed_everything


class Feed:
    """Batches of a training loader, epoch by epoch, on the training device.

    In one process the loader is used as it is. Among several, a loader with `shard(rank, world)`
    (shoal's own) is sharded by it; of a torch `DataLoader` each process loads its slice of every
    batch; a `DataLoader` with a `DistributedSampler` is sharded already; of anything else each
    process reads every batch and keeps its slice. The global batch always keeps the size that the
    loader has in one process.

    The seed decides, with the number of the epoch, all that is random in it; `first_epoch` is the
    number that a loader with `set_epoch` gets for epoch 0.
    """

    def __init__(
        self, loader: Any, seed: int, device: torch.device, channels_last: bool, first_epoch: int
    ) -> None:
        self.seed = seed
        self.first_epoch = first_epoch
        self.device = device
        self.channels_last = channels_last
        self._owners = _generator_owners(loader)
        generators = [owner.generator for owner in self._owners]
        self._before = [(each, each and each.get_state()) for each in generators]
        _check_length(loader)
        # All labels are known to lie below it; None if the loader does not say so.
        self.classes = loader.num_classes if isinstance(loader, ImageLoader) else None
        self._slice = False
        self.loader = self._share(loader)

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch (from 0), the same ones at every call.

        Seeds Python's, NumPy's and torch's generators first. All processes get the same seed,
        because a `DataLoader` may draw its order from it and they must agree on the order.
        """
        seed_everything(derive_seed(self.seed, "epoch", epoch), self.device)
        for owner in self._owners:
            if owner.generator is None and isinstance(owner, RandomSampler):
                # One of its own, so that the order does not hang on the number of processes.
                owner.generator = torch.Generator()
            if owner.generator is not None:
                owner.generator.manual_seed(derive_seed(self.seed, "order", epoch))
        if getattr(whole_of(self.loader), "persistent_workers", False):
            # Workers that stay would go on in their random state.
            whole_of(self.loader)._iterator = None
        set_epoch(self.loader, self.first_epoch + epoch)
        return self._batches()

    def close(self) -> None:
        """Restore the user's generators."""
        for owner, (generator, state) in zip(self._owners, self._before, strict=True):
            owner.generator = generator
            if generator is not None:
                generator.set_state(state)

    def _batches(self) -> Iterator[Batch]:
        for raw in self.loader:
            # A slice is cut before it moves: the rest of the batch is other processes' business.
            whole = split_batch(raw, None if self._slice else self.device)
            batch = _slice_of(whole, rank(), world()).to(self.device) if self._slice else whole
            yield batch.each(_channels_last) if self.channels_last else batch

    def _share(self, loader: Any) -> Any:
        if hasattr(loader, "shard"):
            # On the device, shoal's loaders also augment and normalise there.
            loader = loader.to(self.device) if hasattr(loader, "to") else loader
            return loader.shard(rank(), world()) if world() > 1 else loader
        if world() == 1 or is_sharded(loader):
            return loader
        if type(loader) is not DataLoader or loader.batch_sampler is None or _streams(loader):
            self._slice = True
            return loader
        return _loading_less(loader, rank(), world())


class _Slices:
    """A process's slice of each batch of indices; see `_slice_of`."""

    def __init__(self, batches: Any, index: int, count: int) -> None:
        self.batches, self.index, self.count = batches, index, count
        self.sampler = getattr(batches, "sampler", None)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self.batches:
            own = list(batch)
            yield own[self.index % len(own) :: self.count]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, if the batches have several."""
        choose = getattr(self.batches, "set_epoch", None)
        if choose is not None:
            choose(epoch)


def _streams(loader: DataLoader[Any]) -> bool:
    return isinstance(loader.dataset, IterableDataset)


def _loading_less(loader: DataLoader[Any], index: int, count: int) -> DataLoader[Any]:
    """Return a loader that loads one process's slice of each batch."""
    kept = {name: getattr(loader, name) for name in _KEPT if hasattr(loader, name)}
    slices: Any = _Slices(loader.batch_sampler, index, count)
    return DataLoader(loader.dataset, batch_sampler=slices, **kept)


# What a `DataLoader` is told besides its data and batches.
_KEPT = (
    "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator",
    "multiprocessing_context", "prefetch_factor", "persistent_workers", "pin_memory_device",
    "in_order",
)  # fmt: skip


def whole_of(loader: Any) -> Any:
    """Return the loader of which a loader gives the first batches alone; else itself."""
    return getattr(loader, "first_of", loader)


def _check_length(loader: Any) -> None:
    if training_batches(loader) == 0:
        raise DataError("the training loader is empty: check the data, batch_size and drop_last")


def _generator_owners(loader: Any) -> list[Any]:
    """Return the parts of a torch `DataLoader` that hold a random generator or could hold one."""
    loader = whole_of(loader)
    if not isinstance(loader, DataLoader):
        return []
    parts: list[Any] = [loader, loader.sampler, getattr(loader.batch_sampler, "sampler", None)]
    return list({id(part): part for part in parts if hasattr(part, "generator")}.values())


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


def _slice_of(batch: Batch, index: int, count: int) -> Batch:
    """Return every `count`-th sample from `index` on, at least one.

    A batch smaller than the number of processes gives the late ones a sample that another one has
    too: a process without a sample could not take part in the step.
    """
    return batch.rows(slice(index % batch.size, None, count))
