"""What a fit makes of the user's loader: this process's share of it, in a reproducible order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data.distributed import DistributedSampler

from shoal.data.batch import Batch, split_batch
from shoal.distributed import rank, world
from shoal.errors import DataError
from shoal.passes.batches import set_epoch
from shoal.seeds import derive_seed, seed_everything

__all__ = ["Feed"]


class Feed:
    """Batches of a training loader, epoch by epoch, on the training device.

    In one process the loader is used as it is. Among several, a loader with `shard(rank, world)`
    (shoal's own) is sharded by it; a torch `DataLoader` by accelerate, which splits every batch if
    its size is a multiple of the number of processes; a `DataLoader` with a `DistributedSampler`
    is sharded already; of anything else each process reads every batch and keeps its slice. In
    all cases the global batch keeps the size that the loader has in one process.

    Args:
        loader: an iterable of batches with a length.
        seed: decides, with the number of the epoch, all that is random in it.
        device: where the batches go.
        channels_last: whether 4-D inputs are made channels-last.
        first_epoch: the number that a loader with `set_epoch` gets for epoch 0.

    Raises:
        DataError: the loader is empty or has no length.
    """

    def __init__(
        self,
        loader: Any,
        *,
        seed: int,
        device: torch.device,
        channels_last: bool,
        first_epoch: int = 0,
    ) -> None:
        self.seed = seed
        self.first_epoch = first_epoch
        self.device = device
        self.channels_last = channels_last
        self._owners = _generator_owners(loader)
        self._before = [
            (owner.generator, owner.generator and owner.generator.get_state())
            for owner in self._owners
        ]
        _check_length(loader)
        self._prepared = self._slice = False
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
        set_epoch(self.loader, self.first_epoch + epoch)
        return self._batches(self.loader)

    def close(self) -> None:
        """Restore the user's generators, and end accelerate's bookkeeping."""
        if self._prepared:
            self.loader.end()  # accelerate's loaders do this themselves only if read to the end
        for owner, (generator, state) in zip(self._owners, self._before, strict=True):
            owner.generator = generator
            if generator is not None:
                generator.set_state(state)

    def _batches(self, batches: Iterable[Any]) -> Iterator[Batch]:
        for raw in batches:
            # A slice is cut before it moves: the rest of the batch is other processes' business.
            whole = split_batch(raw, None if self._slice else self.device)
            batch = _slice_of(whole, rank(), world()).to(self.device) if self._slice else whole
            yield batch.each(_channels_last) if self.channels_last else batch

    def _share(self, loader: Any) -> Any:
        if hasattr(loader, "shard"):
            # On the device, shoal's loaders also augment and normalise there.
            loader = loader.to(self.device) if hasattr(loader, "to") else loader
            return loader.shard(rank(), world()) if world() > 1 else loader
        if world() == 1 or isinstance(getattr(loader, "sampler", None), DistributedSampler):
            return loader
        size = None
        if isinstance(loader, DataLoader):
            size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
        if not isinstance(size, int) or size % world():
            self._slice = True
            return loader
        from accelerate.data_loader import prepare_data_loader

        self._prepared = True
        # Its own seeding stays off (rng_types): `epoch` seeds all processes alike.
        return prepare_data_loader(
            loader, num_processes=world(), process_index=rank(), split_batches=True
        )


def _check_length(loader: Any) -> None:
    try:
        batches = len(loader)
    except TypeError:
        raise DataError(
            f"the training loader ({type(loader).__name__}) has no length: give one with __len__, "
            "because the learning-rate schedule needs the number of batches"
        ) from None
    if batches == 0:
        raise DataError("the training loader is empty: check the data, batch_size and drop_last")


def _generator_owners(loader: Any) -> list[Any]:
    """Return the parts of a torch `DataLoader` that hold a random generator or could hold one."""
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
    start = index if index < batch.size else index % batch.size
    return batch.each(lambda value: value[start::count])
