"""Where a loader's images lie, in memory or in files, and how files become arrays of pixels.

Everybody needs to read folders of images, so Pillow decodes, resizes and crops them, without
torchvision, which cannot even be imported beside many CPU builds of PyTorch. Resizing and cropping
round as its transforms do, and files are decoded in threads, with the broken ones named.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shoal.data.batch import sent
from shoal.data.deep import eight_bits
from shoal.data.frame import Frame, Pixels
from shoal.data.split import Indices
from shoal.errors import DataError, one_line
from shoal.seeds import generator

_CHUNK = 64  # files a thread decodes in one go


@contextmanager
def large_images_allowed() -> Iterator[None]:
    """Silence Pillow's warning of images of 89 megapixels or more; it refuses those of twice that.

    To be entered by one thread at a time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _open_rgb(path: Path) -> Image.Image:
    """Return a file's (first) image, decoded, as RGB; raises whatever Pillow does."""
    with Image.open(path) as image:
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            # Pillow would clip deep grey at 255, to a white image.
            return Image.fromarray(eight_bits(image)).convert("RGB")
        if image.mode == "P" and "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")
        return image.convert("RGB")


def _decoded(
    path: Path, frame: Frame, rng: np.random.Generator | None = None
) -> Pixels | DataError:
    """Return a file's square image, cut at random where `rng` is given, or what went wrong."""
    try:
        image = _open_rgb(path)
        return frame.centre(image) if rng is None else frame.random(image, rng)
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return _undecodable(path, f"it has more than {most:.0f} megapixels")
    except Exception as error:  # a damaged file makes decoders raise anything
        reason = one_line(str(error)) or type(error).__name__
        # Pillow's own message for a file of another format repeats the path.
        what = "it is not an image" if "cannot identify" in reason else reason
        return _undecodable(path, what)


def _undecodable(path: Path, what: str) -> DataError:
    return DataError(
        f"cannot decode the image '{path}' ({what}): replace or remove it, "
        "or skip such files with skip_broken=True"
    )


def _cpu_count() -> int:
    """Return the number of CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def decode_all(
    paths: Sequence[Path], frame: Frame, *, skip_broken: bool, keep: bool = True
) -> tuple[Pixels, list[int]]:
    """Decode files in parallel threads; `keep=False` only checks them, in little memory.

    Returns the images, `[N, size, size, 3]`, and the positions in `paths` of the files skipped;
    raises `DataError` for the first broken one if none is to be skipped.
    """
    pixels = np.empty((len(paths) if keep else 0, frame.size, frame.size, 3), dtype=np.uint8)
    # In the order of the disk, not the caller's random one.
    order = sorted(range(len(paths)), key=lambda position: str(paths[position]))

    def decode(start: int) -> list[tuple[int, DataError]]:
        failed = []
        for position in order[start : start + _CHUNK]:
            image = _decoded(paths[position], frame)
            if isinstance(image, DataError):
                failed.append((position, image))
            elif keep:
                pixels[position] = image
        return failed

    broken: list[int] = []
    with large_images_allowed(), ThreadPoolExecutor(_cpu_count()) as pool:
        for failed in pool.map(decode, range(0, len(paths), _CHUNK)):
            if failed and not skip_broken:
                pool.shutdown(wait=False, cancel_futures=True)
                raise failed[0][1]
            broken += [position for position, _ in failed]
    broken.sort()
    return np.delete(pixels, broken, axis=0) if broken and keep else pixels, broken


def resize_all(pixels: Pixels, size: int) -> Pixels:
    """Return images `[N, H, W, C]` resized to `[N, size, size, C]`, bilinear and antialiased."""
    if pixels.shape[1:3] == (size, size):
        return pixels
    resized = np.empty((len(pixels), size, size, pixels.shape[3]), dtype=np.uint8)
    for start in range(0, len(pixels), 1024):  # floats of all images at once need too much memory
        part = torch.from_numpy(pixels[start : start + 1024]).permute(0, 3, 1, 2).float()
        part = F.interpolate(part, (size, size), mode="bilinear", antialias=True)
        rounded = part.round().clamp(0, 255).to(torch.uint8)
        resized[start : start + 1024] = rounded.permute(0, 2, 3, 1).numpy()
    return resized


@dataclass(frozen=True)
class PixelsInMemory:
    """Images on the device where they are used.

    They lie pixel by pixel: a gather of whole pixels is the fastest way to crop and flip.
    """

    pixels: Tensor  # uint8 [N, H, W, C]

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
        return self.pixels.index_select(0, sent(torch.from_numpy(positions), self.pixels.device))


@dataclass(frozen=True)
class ImageFiles(Dataset[Any]):
    """Image files that worker processes decode as they are needed.

    Without augmentation the images of a loader are those it would hold in memory. With an
    augmentation whose `crop` is above 0, an image is cut at random as the frame's `cut` says, where
    one in memory is shifted by a few pixels.

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
        """Yield the images of each batch of positions, uint8 `[B, H, W, 3]`."""
        on_gpu = self.device.type == "cuda"
        decoded: DataLoader[Any] = DataLoader(
            self,
            sampler=batches,  # any sequence of what the data set takes
            batch_size=None,
            num_workers=min(self.workers, _cpu_count(), len(batches)),
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
            rng = None
            if self.crop is not None:
                seed, epoch = self.crop
                rng = generator(seed, "crop", epoch, int(position))
            with large_images_allowed():
                image = _decoded(Path(self.paths[position]), self.frame, rng)
            if isinstance(image, DataError):
                return str(image)
            pixels[row] = image
        return torch.from_numpy(pixels)
