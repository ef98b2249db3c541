"""The loader of image files that do not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shoal.data.augment import Augment
from shoal.data.base import Indices, LoaderOptions, SeededLoader
from shoal.data.images import Frame, cpu_count, decode_error, open_rgb
from shoal.errors import ConfigError, DataError
from shoal.seeds import generator

__all__ = ["StreamLoader"]


class StreamLoader(SeededLoader):
    """Batches of images that worker processes decode from files as they are needed.

    The same laws hold as for an `ImageLoader`, and without augmentation the same images come out.
    With an augmentation whose `crop` is above 0, an image is cut at random, 8 to 100 % of its area
    resized to the full size, where an `ImageLoader` shifts by a few pixels.

    Args:
        paths: the image files, `N` of them.
        labels: the class of every image, `[N]`, each in [0, num_classes).
        image_size: height and width of the images, in pixels.
        resize: what the shorter side is resized to before the centre is cut out; None means
            256/224 of `image_size`.
        workers: processes that decode; 0 decodes in this process.
        **options: batch size, normalisation, augmentation, order and device, as `SeededLoader`
            takes them.

    Raises:
        DataError: there is no image, or a label is out of range or missing. When iterated: a file
            cannot be decoded; it is named.
        ConfigError: an option makes no sense.
    """

    def __init__(
        self,
        paths: Sequence[Path | str],
        labels: Tensor | NDArray[Any] | Sequence[int],
        *,
        image_size: int = 224,
        resize: int | None = None,
        workers: int = 2,
        **options: Unpack[LoaderOptions],
    ) -> None:
        super().__init__(labels, **options)
        if len(paths) != self.num_samples:
            raise DataError(
                f"there are {len(paths)} images and {self.num_samples} labels: "
                "give one label for each image"
            )
        if image_size < 1:
            raise ConfigError(f"image_size is {image_size} pixels: give at least 1")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, 3):
                raise ConfigError(f"{name} has {len(values)} numbers: give 3 (RGB), or one for all")
        self._paths = [Path(path) for path in paths]
        self._frame = Frame(image_size, max(image_size, resize or round(image_size * 256 / 224)))
        self.workers = workers

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return 3, self._frame.size, self._frame.size

    def select(self, positions: Indices) -> Self:
        """Return a loader of the images at `positions`, in that order."""
        chosen = np.asarray(positions, dtype=np.int64)
        paths = [self._paths[i] for i in chosen]
        return self._but(labels=self.labels[torch.from_numpy(chosen)], _paths=paths)

    @property
    def _batch_augment(self) -> Augment:
        # The random crop is made while decoding.
        options = self.augment.to_dict()
        return Augment(**{**options, "crop": 0})

    def _read(self, batches: list[Indices], epoch: int) -> Iterator[Tensor]:
        random = (self.seed, epoch) if self.augment.crop else None
        on_gpu = self.device.type == "cuda"
        batches_of_files: DataLoader[Any] = DataLoader(
            _Files(self._paths, self._frame, random),
            sampler=batches,  # any sequence of what the data set takes
            batch_size=None,
            num_workers=min(self.workers, cpu_count(), len(batches)),
            collate_fn=_unchanged,
            pin_memory=on_gpu,
            # Without its own generator the loader draws from, and so changes, the global one.
            generator=torch.Generator(),
        )
        for images in batches_of_files:
            if isinstance(images, str):
                raise DataError(images)
            yield images.to(self.device, non_blocking=on_gpu)


class _Files(Dataset[Any]):
    """Image files, decoded a batch at a time; `random` is (seed, epoch) for random crops."""

    def __init__(self, paths: list[Path], frame: Frame, random: tuple[int, int] | None) -> None:
        self.paths = paths
        self.frame = frame
        self.random = random

    def __getitem__(self, batch: Indices) -> Tensor | str:
        """Return uint8 `[B, H, W, 3]`, or what went wrong: an error would lose its one line."""
        pixels = np.empty((len(batch), self.frame.size, self.frame.size, 3), dtype=np.uint8)
        for row, position in enumerate(batch):
            path = self.paths[position]
            try:
                pixels[row] = self._decode(path, int(position))
            except MemoryError:
                raise
            except Exception as error:  # a damaged file makes decoders raise anything
                return str(decode_error(path, error))
        return torch.from_numpy(pixels)

    def _decode(self, path: Path, position: int) -> NDArray[np.uint8]:
        image = open_rgb(path)
        if self.random is None:
            return self.frame.centre(image)
        seed, epoch = self.random
        return self.frame.random(image, generator(seed, "crop", epoch, position))


def _unchanged(batch: Any) -> Any:
    """Return what the data set returned; a module's function, since workers may pickle it."""
    return batch
