"""The loader of images that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.data.base import Indices, LoaderOptions, SeededLoader
from shoal.errors import ConfigError, DataError

__all__ = ["ImageLoader"]


class ImageLoader(SeededLoader):
    """Batches of images that are held in memory as uint8, on the device where they are used.

    A batch costs a gather of its pixels and one multiply-add; nothing is done image by image.

    Args:
        images: uint8 `[N, C, H, W]`. In channels_last memory format they are kept without a copy.
        labels: the class of every image, `[N]`, each in [0, num_classes).
        **options: batch size, normalisation, augmentation, order and device, as `SeededLoader`
            takes them.

    Raises:
        DataError: the images are not uint8 `[N, C, H, W]`, there is none, or a label is out of
            range or missing.
        ConfigError: an option makes no sense.

    Example:
        >>> images = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)
        >>> loader = ImageLoader(images, torch.arange(10), batch_size=4, mean=0.5, std=0.5)
        >>> [list(x.shape) for x, _ in loader]
        [[4, 3, 8, 8], [4, 3, 8, 8], [2, 3, 8, 8]]
    """

    def __init__(
        self,
        images: Tensor | NDArray[np.uint8],
        labels: Tensor | NDArray[Any] | Sequence[int],
        **options: Unpack[LoaderOptions],
    ) -> None:
        super().__init__(labels, **options)
        given = torch.as_tensor(images)
        if given.dtype != torch.uint8 or given.ndim != 4:
            raise DataError(
                f"images are {given.dtype} of shape {list(given.shape)}: give uint8 [N, C, H, W]"
            )
        if len(given) != self.num_samples:
            raise DataError(
                f"there are {len(given)} images and {self.num_samples} labels: "
                "give one label for each image"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, given.shape[1]):
                raise ConfigError(
                    f"{name} has {len(values)} numbers for images of {given.shape[1]} channels: "
                    "give one for each channel, or one for all"
                )
        # Pixel by pixel: a gather of whole pixels is the fastest way to crop and flip.
        self._pixels = given.permute(0, 2, 3, 1).contiguous().to(self.device)  # [N, H, W, C]

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, height, width, channels = self._pixels.shape
        return channels, height, width

    def to(self, device: torch.device | str) -> Self:
        """Return a loader whose images and batches are on `device`."""
        return self._but(device=torch.device(device), _pixels=self._pixels.to(device))

    def select(self, positions: Indices) -> Self:
        """Return a loader of the images at `positions`, in that order; they are copied."""
        chosen = torch.from_numpy(np.asarray(positions, dtype=np.int64))
        pixels = self._pixels.index_select(0, chosen.to(self.device))
        return self._but(labels=self.labels[chosen], _pixels=pixels)

    def _read(self, batches: list[Indices], epoch: int) -> Iterator[Tensor]:
        for batch in batches:
            yield self._pixels.index_select(0, torch.from_numpy(batch).to(self.device))
