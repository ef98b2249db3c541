"""What shoal's own loaders share: order, epochs, shards, augmentation and normalisation.

PyTorch's `DataLoader` collates image by image and shuffles by a generator that remembers; here a
batch is one gather, and every epoch can be had again.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Self, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.data.augment import Augment, resolve_augment
from shoal.data.split import stratified_subset
from shoal.errors import ConfigError, DataError
from shoal.seeds import generator

__all__ = ["LoaderOptions", "SeededLoader"]

Indices = NDArray[np.int64]


class LoaderOptions(TypedDict, total=False):
    """The keyword arguments of every loader of shoal's own; `SeededLoader` explains them."""

    batch_size: int
    mean: Sequence[float] | float
    std: Sequence[float] | float
    augment: Augment | str | None
    shuffle: bool
    seed: int
    device: torch.device | str
    drop_last: bool
    num_classes: int | None
    channels_last: bool


class SeededLoader(ABC):
    """An iterable of batches `(images, labels)` that is a function of (seed, epoch) alone.

    Images are float32 `[B, C, H, W]` on `device`, normalised as `(value / 255 - mean) / std` and
    in channels_last memory format unless asked otherwise; labels are int64 `[B]`. Every pass over
    a loader of one epoch gives the same batches, in every process and after a restart: call
    `set_epoch` before each epoch of training. All other methods return a new loader that shares
    the images.

    Args:
        labels: the class of every sample, `[N]`, each in [0, num_classes).
        batch_size: samples per batch of all processes together.
        mean: per channel, or one number for all, in units of the full range of a pixel.
        std: as `mean`.
        augment: random changes, an `Augment` or the name of a preset; None for none.
        shuffle: whether each epoch has its own order.
        seed: at least 0.
        device: where the batches shall be.
        drop_last: whether a last batch of fewer than `batch_size` samples is left out.
        num_classes: None counts up to the largest label.
        channels_last: whether images have channels_last memory format.

    Raises:
        DataError: there is no sample, or a label is out of range.
        ConfigError: an option makes no sense.
    """

    def __init__(
        self,
        labels: Tensor | NDArray[Any] | Sequence[int],
        *,
        batch_size: int = 128,
        mean: Sequence[float] | float = (0.0,),
        std: Sequence[float] | float = (1.0,),
        augment: Augment | str | None = None,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
        num_classes: int | None = None,
        channels_last: bool = True,
    ) -> None:
        self.labels = _checked_labels(labels, num_classes)
        self.num_classes = num_classes or int(self.labels.max()) + 1
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}: give at least 1")
        generator(seed, "order")  # raises for a bad seed now, not at the first batch
        self.batch_size = batch_size
        self.mean = _floats(mean)
        self.std = _floats(std)
        if min(self.std) <= 0:
            raise ConfigError(f"std is {self.std}: every channel's must be above 0")
        self.augment = resolve_augment(augment, Augment())
        self.shuffle = shuffle
        self.seed = seed
        self.device = torch.device(device)
        self.drop_last = drop_last
        self.channels_last = channels_last
        self.epoch = 0
        self.rank, self.world = 0, 1

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""

    @abstractmethod
    def _read(self, batches: list[Indices], epoch: int) -> Iterator[Tensor]:
        """Yield the images of each batch of positions, uint8 `[B, H, W, C]`, on the device."""

    @abstractmethod
    def select(self, positions: Indices) -> Self:
        """Return a loader of the samples at `positions`, in that order."""

    @property
    def num_samples(self) -> int:
        """The number of samples, of all processes together."""
        return len(self.labels)

    def __len__(self) -> int:
        """Return the number of batches of an epoch; all ranks have the same number."""
        full, tail = divmod(self.num_samples, self.batch_size)
        return full + int(tail >= self.world and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this epoch's batches."""
        epoch = self.epoch  # a set_epoch during the pass is for the next one
        batches = self._batches(epoch)
        parts = [self._slice(len(batch)) for batch in batches]
        mine = [batch[part] for batch, part in zip(batches, parts, strict=True)]
        labels = self.labels.to(self.device)
        for number, images in enumerate(self._read(mine, epoch)):
            draws = self._draws(len(batches[number]), epoch, number)
            if draws is not None:
                images = self._batch_augment.apply(images, draws[parts[number]])
            positions = torch.from_numpy(mine[number]).to(self.device)
            yield self._normalise(images), labels.index_select(0, positions)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which decides order and augmentation; counted from 0."""
        if epoch < 0:
            raise ConfigError(f"epoch is {epoch}: epochs count from 0")
        self.epoch = epoch

    def plain(self) -> Self:
        """Return all images in stored order: no shuffle, augmentation, drop_last or shard.

        Scoring and evaluation use it.
        """
        none = Augment()
        return self._but(augment=none, shuffle=False, drop_last=False, rank=0, world=1, epoch=0)

    def shard(self, rank: int, world: int) -> Self:
        """Return the loader whose every batch is this rank's slice of the global batch.

        Random numbers are drawn for the global batch and then sliced, so that `world` processes
        together see exactly the samples and augmentations that one process sees. One exception: a
        last batch of fewer than `world` samples is left out, since a rank would get none of it.
        Counting over all samples is better done on whole batches dealt to the ranks in turn.

        Args:
            rank: this process, 0 to world - 1.
            world: the number of processes.

        Raises:
            ConfigError: the rank does not exist, or a batch has fewer samples than `world`.
            DataError: there are fewer samples than `world`.
        """
        if not 0 <= rank < world:
            raise ConfigError(f"rank is {rank} of {world}: give 0 to {world - 1}")
        if self.batch_size < world:
            raise ConfigError(
                f"a batch of {self.batch_size} cannot be shared by {world} processes: "
                f"give a batch_size of at least {world}"
            )
        if self.num_samples < world:
            raise DataError(
                f"{self.num_samples} samples cannot be shared by {world} processes: "
                "use fewer processes"
            )
        return self._but(rank=rank, world=world)

    def to(self, device: torch.device | str) -> Self:
        """Return a loader whose batches are on `device`."""
        return self._but(device=torch.device(device))

    def with_batch_size(self, batch_size: int) -> Self:
        """Return a loader with another number of samples per (global) batch."""
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}: give at least 1")
        return self._but(batch_size=batch_size)

    def take(self, count: int) -> Self:
        """Return a loader of `count` samples with the same proportions of classes.

        The choice depends on the loader's seed only; all samples if there are fewer.
        """
        labels = self.labels.numpy()
        return self.select(stratified_subset(labels, count, seed=self.seed, purpose="take"))

    @property
    def _batch_augment(self) -> Augment:
        """The part of the augmentation that is done on whole batches."""
        return self.augment

    def _but(self, **changes: Any) -> Self:
        other = copy.copy(self)
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    def _batches(self, epoch: int) -> list[Indices]:
        order: Indices = np.arange(self.num_samples)
        if self.shuffle:
            order = generator(self.seed, "order", epoch).permutation(order)
        starts = range(0, len(self) * self.batch_size, self.batch_size)
        return [order[start : start + self.batch_size] for start in starts]

    def _slice(self, size: int) -> slice:
        """Return this rank's part of a global batch of `size` samples."""
        return slice(size * self.rank // self.world, size * (self.rank + 1) // self.world)

    def _draws(self, size: int, epoch: int, number: int) -> NDArray[np.float64] | None:
        """Return the random numbers of a global batch, None without augmentation."""
        if self._batch_augment == Augment():
            return None
        rng = generator(self.seed, "augment", epoch, number)
        return self._batch_augment.draw(size, rng)

    def _normalise(self, images: Tensor) -> Tensor:
        """Turn `[B, H, W, C]` of 0 to 255 into normalised float32 `[B, C, H, W]`."""
        std = torch.tensor(self.std, dtype=torch.float64)
        scale = (1 / (255 * std)).to(images.device, torch.float32)
        shift = (-torch.tensor(self.mean, dtype=torch.float64) / std).to(scale)
        normalised = torch.addcmul(shift, images.float(), scale).permute(0, 3, 1, 2)
        if self.channels_last:
            # A view already, except that PyTorch leaves the strides of one channel ambiguous.
            return normalised.contiguous(memory_format=torch.channels_last)
        return normalised.contiguous()


def _floats(values: Sequence[float] | float) -> tuple[float, ...]:
    if isinstance(values, int | float):
        return (float(values),)
    return tuple(float(value) for value in values)


def _checked_labels(
    labels: Tensor | NDArray[Any] | Sequence[int], num_classes: int | None
) -> Tensor:
    """Return the labels as int64 `[N]` on the CPU, each in [0, num_classes)."""
    given = torch.as_tensor(labels).cpu()
    if given.ndim != 1 or given.is_floating_point() or given.dtype == torch.bool:
        shape = list(given.shape)
        raise DataError(
            f"labels are {given.dtype} of shape {shape}: give one class number (integer) per sample"
        )
    checked = given.to(torch.int64)
    if len(checked) == 0:
        raise DataError("a data set has no sample: give at least one image")
    low, high = int(checked.min()), int(checked.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        wrong = low if low < 0 else high
        top = "" if num_classes is None else f" to {num_classes - 1}"
        raise DataError(f"label {wrong} is out of range: number the classes from 0{top}")
    return checked
