"""The loader of labelled images: an epoch is a function of (seed, epoch) and can be had again.

PyTorch's `DataLoader` collates image by image and shuffles by a generator that remembers; here a
batch is one gather of pixels and one multiply-add.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.data.augment import Augment, resolve_augment
from shoal.data.batch import sent
from shoal.data.images import ImageFiles, PixelsInMemory
from shoal.data.mix import Mixing
from shoal.data.split import Indices, stratified_subset
from shoal.errors import ConfigError, DataError, OptionError
from shoal.seeds import generator


class ImageLoader:
    """An iterable of batches `(images, labels)` that is a function of (seed, epoch) alone.

    Images are float32 `[B, C, H, W]` on `device`, normalised as `(value / 255 - mean) / std` and
    in channels_last memory format; labels are int64 `[B]`, or where the augmentation mixes images
    probabilities `[B, num_classes]`. Every pass over a loader of one epoch gives the same batches,
    in every process and after a restart: call `set_epoch` before each epoch of training. All other
    methods return a new loader that shares the images.

    Args:
        images: uint8 `[N, C, H, W]`, kept on `device` (in channels_last memory format without a
            copy), or `ImageFiles`, which are decoded as they are needed.
        labels: the class of every image, `[N]`, each in [0, num_classes).
        batch_size: samples per batch of all processes together.
        mean: per channel, or one number for all, in units of the full range of a pixel.
        std: as `mean`.
        augment: random changes, an `Augment` or the name of a preset; None for none.
        shuffle: whether each epoch has its own order.
        seed: at least 0.
        device: where the batches go.
        drop_last: whether to omit a last batch of fewer than `batch_size` samples.
        num_classes: None counts up to the largest label.
        classes: the names of the classes in the order of their labels; empty if not known.

    Raises:
        DataError: the images are not uint8 `[N, C, H, W]`, there is none, or a label is out of
            range or missing. When iterated: a file cannot be decoded; it is named.
        ConfigError: an option is out of its range.

    Example:
        >>> images = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)
        >>> loader = ImageLoader(images, torch.arange(10), batch_size=4, mean=0.5, std=0.5)
        >>> [list(x.shape) for x, _ in loader]
        [[4, 3, 8, 8], [4, 3, 8, 8], [2, 3, 8, 8]]
    """

    def __init__(
        self,
        images: Tensor | NDArray[np.uint8] | ImageFiles,
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
        classes: Sequence[str] = (),
    ) -> None:
        self.labels = _checked_labels(labels, num_classes)
        self.device = torch.device(device)
        source = images if isinstance(images, ImageFiles) else _in_memory(images)
        self.source = source.to(self.device)
        if len(source) != self.num_samples:
            raise DataError(
                f"there are {len(source)} images and {self.num_samples} labels: "
                "give one label for each image"
            )
        generator(seed, "order")  # raises for a bad seed now, not at the first batch
        self.num_classes = num_classes or int(self.labels.max()) + 1
        self.classes = tuple(classes)
        self.batch_size = _checked("batch_size", batch_size, 1)
        self.mean = _per_channel("mean", mean, source.shape[0])
        self.std = _per_channel("std", std, source.shape[0])
        if min(self.std) <= 0:
            raise OptionError("std", self.std, "numbers above 0")
        self.augment = resolve_augment(augment, Augment())
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0
        self.rank, self.world = 0, 1

    @property
    def num_samples(self) -> int:
        """The number of samples, of all processes together."""
        return len(self.labels)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.source.shape

    def __len__(self) -> int:
        """Return the number of batches of an epoch; all ranks have the same number."""
        full, tail = divmod(self.num_samples, self.batch_size)
        return full + int(tail >= self.world and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this epoch's batches."""
        epoch = self.epoch  # a set_epoch during the pass is for the next one
        batches = self._batches(epoch)
        rank, world = self.rank, self.world
        sizes = [len(batch) for batch in batches]
        source, augment = self.source, self.augment
        # Each is mixed with the one before it, which another process may have: it is read, too.
        # The one before the first is the last.
        more = 1 if augment.mix else 0
        parts = [np.arange(n * rank // world - more, n * (rank + 1) // world) for n in sizes]
        mine = [batch[part] for batch, part in zip(batches, parts, strict=True)]
        labels = self.labels.to(self.device)
        if isinstance(source, ImageFiles):  # they are cropped as they are decoded
            source = replace(source, crop=(self.seed, epoch) if augment.crop else None)
            augment = replace(augment, crop=0)
        for number, images in enumerate(source.read(mine)):
            if augment != Augment():
                rng = generator(self.seed, "augment", epoch, number)
                draws = augment.draw(len(batches[number]), rng)
                images = augment.apply(images, draws[parts[number]])
            positions = sent(torch.from_numpy(mine[number]), self.device)
            wanted = labels.index_select(0, positions)
            if augment.mix:
                _, height, width = self.sample_shape
                rng = generator(self.seed, "mix", epoch, number)
                mixing = Mixing.draw(augment.mix, height, width, rng)
                images = mixing.images(images)
                wanted = mixing.labels(wanted, self.num_classes)
            yield self._normalise(images), wanted

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which decides order and augmentation; counted from 0."""
        self.epoch = _checked("epoch", epoch, 0, ": epochs count from 0")

    def plain(self) -> Self:
        """Return all images in stored order: no shuffle, augmentation, drop_last or shard."""
        off = {"augment": Augment(), "shuffle": False, "drop_last": False}
        return self._but(**off, rank=0, world=1, epoch=0)

    def shard(self, rank: int, world: int) -> Self:
        """Return the loader whose every batch is this rank's slice of the global batch.

        Random numbers are drawn for the global batch and then sliced, so that `world` processes
        together see exactly the samples and augmentations that one process sees. One exception: a
        last batch of fewer than `world` samples is omitted, since a rank would get none of it.

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
        """Return a loader whose batches, and images in memory, are on `device`."""
        where = torch.device(device)
        return self._but(device=where, source=self.source.to(where))

    def with_batch_size(self, batch_size: int) -> Self:
        """Return a loader with another number of samples per (global) batch."""
        return self._but(batch_size=_checked("batch_size", batch_size, 1))

    def select(self, positions: Indices) -> Self:
        """Return a loader of the samples at `positions`, in that order; pixels are copied."""
        chosen = np.asarray(positions, dtype=np.int64)
        labels = self.labels[torch.from_numpy(chosen)]
        return self._but(labels=labels, source=self.source.select(chosen))

    def take(self, count: int) -> Self:
        """Return a loader of `count` samples with the same proportions of classes.

        The choice depends on the loader's seed only; all samples if there are fewer.
        """
        labels = self.labels.numpy()
        return self.select(stratified_subset(labels, count, seed=self.seed, purpose="take"))

    def _but(self, **changes: Any) -> Self:
        other = copy.copy(self)
        other.__dict__.update(changes)
        return other

    def _batches(self, epoch: int) -> list[Indices]:
        order: Indices = np.arange(self.num_samples)
        if self.shuffle:
            order = generator(self.seed, "order", epoch).permutation(order)
        starts = range(0, len(self) * self.batch_size, self.batch_size)
        return [order[start : start + self.batch_size] for start in starts]

    def _normalise(self, images: Tensor) -> Tensor:
        """Turn `[B, H, W, C]` of 0 to 255 into normalised float32 `[B, C, H, W]`."""
        std = torch.tensor(self.std, dtype=torch.float64)
        mean = torch.tensor(self.mean, dtype=torch.float64)
        scale = sent((1 / (255 * std)).float(), images.device)
        shift = sent((-mean / std).float(), images.device)
        normalised = torch.addcmul(shift, images.float(), scale).permute(0, 3, 1, 2)
        # A view already, except that PyTorch leaves the strides of one channel ambiguous.
        return normalised.contiguous(memory_format=torch.channels_last)


def _in_memory(images: Tensor | NDArray[np.uint8]) -> PixelsInMemory:
    given = torch.as_tensor(images)
    if given.dtype != torch.uint8 or given.ndim != 4:
        raise DataError(
            f"images are {given.dtype} of shape {list(given.shape)}: give uint8 [N, C, H, W]"
        )
    return PixelsInMemory(given.permute(0, 2, 3, 1).contiguous())


def _checked(name: str, number: int, least: int, why: str = "") -> int:
    if number < least:
        raise OptionError(name, number, f"at least {least}{why}")
    return number


def _per_channel(name: str, values: Sequence[float] | float, channels: int) -> tuple[float, ...]:
    numbers = (values,) if isinstance(values, int | float) else values
    if len(numbers) not in (1, channels):
        raise ConfigError(
            f"{name} has {len(numbers)} numbers for images of {channels} channels: "
            "give one for each channel, or one for all"
        )
    return tuple(float(number) for number in numbers)


def _checked_labels(
    labels: Tensor | NDArray[Any] | Sequence[int], num_classes: int | None
) -> Tensor:
    """Return the labels as int64 `[N]` on the CPU, each in [0, num_classes)."""
    given = torch.as_tensor(labels).cpu()
    if given.ndim != 1 or given.is_floating_point() or given.dtype == torch.bool:
        raise DataError(
            f"labels are {given.dtype} of shape {list(given.shape)}: "
            "give one class number (integer) per sample"
        )
    if len(given) == 0:
        raise DataError("a data set has no sample: give at least one image")
    checked = given.to(torch.int64)
    low, high = int(checked.min()), int(checked.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        wrong = low if low < 0 else high
        top = "" if num_classes is None else f" to {num_classes - 1}"
        raise DataError(f"label {wrong} is out of range: number the classes from 0{top}")
    return checked
