"""Where a loader's images lie: in memory, or in files that are decoded as they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shoal.data.images import Frame, cpu_count, decode_error, open_rgb
from shoal.data.split import Indices
from shoal.errors import DataError
from shoal.seeds import generator

__all__ = ["ImageFiles", "PixelsInMemory"]


@dataclass(frozen=True)
class PixelsInMemory:
    """Images on the device where they are used.

    They lie pixel by pixel: a gather of whole pixels is the fastest way to crop and flip.

    Attributes:
        pixels: uint8 `[N, H, W, C]`.
    """

    pixels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        _, height, width, channels = self.pixels.shape
        return channels, height, width

    def to(self, device: torch.device) -> PixelsInMemory:
        """Return the images on `device`."""
        return PixelsInMemory(self.pixels.to(device))

    def select(self, positions: Indices) -> PixelsInMemory:
        """Return a copy of the images at `positions`, in that order."""
        return PixelsInMemory(self._at(positions))

    def read(self, batches: list[Indices]) -> Iterator[Tensor]:
        """Yield the images of each batch of positions, uint8 `[B, H, W, C]`."""
        return map(self._at, batches)

    def _at(self, positions: Indices) -> Tensor:
        return self.pixels.index_select(0, torch.from_numpy(positions).to(self.pixels.device))


@dataclass(frozen=True)
class ImageFiles(Dataset[Any]):
    """Image files that worker processes decode as they are needed.

    Without augmentation the images of a loader are those it would hold in memory. With an
    augmentation whose `crop` is above 0, an image is cut at random, 8 to 100 % of its area resized
    to the full size, where one in memory is shifted by a few pixels.

    Attributes:
        paths: the files.
        frame: how each becomes a square image.
        workers: processes that decode; 0 decodes in this process.
        device: where the decoded images go.
        crop: (seed, epoch) of random crops; None cuts out the centre.
    """

    paths: Sequence[Path | str]
    frame: Frame
    workers: int = 2
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (it is immutable)
    crop: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return 3, self.frame.size, self.frame.size

    def to(self, device: torch.device) -> ImageFiles:
        """Return the files, to be read onto `device`."""
        return replace(self, device=device)

    def select(self, positions: Indices) -> ImageFiles:
        """Return the files at `positions`, in that order."""
        return replace(self, paths=[self.paths[i] for i in positions])

    def read(self, batches: list[Indices]) -> Iterator[Tensor]:
        """Yield the images of each batch of positions, uint8 `[B, H, W, 3]`.

        Raises:
            DataError: a file cannot be decoded; it is named.
        """
        on_gpu = self.device.type == "cuda"
        decoded: DataLoader[Any] = DataLoader(
            self,
            sampler=batches,  # any sequence of what the data set takes
            batch_size=None,
            num_workers=min(self.workers, cpu_count(), len(batches)),
            pin_memory=on_gpu,
            # Without its own generator the loader draws from, and so changes, the global one.
            generator=torch.Generator(),
        )
        for images in decoded:
            if isinstance(images, str):
                raise DataError(images)
            yield images.to(self.device, non_blocking=on_gpu)

    def __getitem__(self, batch: Indices) -> Tensor | str:
        """Return uint8 `[B, H, W, 3]`, or what went wrong: an error would lose its one line."""
        pixels = np.empty((len(batch), self.frame.size, self.frame.size, 3), dtype=np.uint8)
        for row, position in enumerate(batch):
            path = Path(self.paths[position])
            try:
                image = open_rgb(path)
                if self.crop is None:
                    pixels[row] = self.frame.centre(image)
                else:
                    seed, epoch = self.crop
                    rng = generator(seed, "crop", epoch, int(position))
                    pixels[row] = self.frame.random(image, rng)
            except MemoryError:
                raise
            except Exception as error:  # a damaged file makes decoders raise anything
                return str(decode_error(path, error))
        return torch.from_numpy(pixels)
