"""Image files to arrays of pixels: decoding, resizing and cropping with Pillow.

Everybody needs to read folders of images, so it works without torchvision, which cannot even be
imported beside many CPU builds of PyTorch. Resizing and cropping round as its transforms do, and
files are decoded in threads, with the broken ones named.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from shoal.errors import DataError, OptionError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Frame", "cpu_count", "decode_all", "decode_error", "open_rgb", "resize_all"]

Pixels = NDArray[np.uint8]

# What a random crop keeps of an image: the usual choice for ImageNet (Szegedy et al. 2015).
_CROP_AREA = (0.08, 1.0)
_CROP_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
_CHUNK = 64  # files a thread decodes in one go


@dataclass(frozen=True)
class Frame:
    """How an image of any size becomes a square one.

    Attributes:
        size: height and width of the result, in pixels.
        resize: what the shorter side is resized to before the central `size` pixels are cut out.

    Raises:
        OptionError: not 1 ≤ size ≤ resize.
    """

    size: int
    resize: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise OptionError("size", self.size, f"1 to {self.resize} pixels")

    def centre(self, image: Image) -> Pixels:
        """Return the resized image's centre, `[size, size, 3]`."""
        from PIL.Image import Resampling

        width, height = image.size
        short = min(width, height)
        if short != self.resize:
            # The longer side is rounded down, as torchvision does.
            width, height = (self.resize * side // short for side in (width, height))
            image = image.resize((width, height), Resampling.BILINEAR)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        if (width, height) != (self.size, self.size):
            image = image.crop((left, top, left + self.size, top + self.size))
        return np.asarray(image)

    def random(self, image: Image, rng: np.random.Generator) -> Pixels:
        """Return a random part of the image, of random area and shape, `[size, size, 3]`."""
        from PIL.Image import Resampling

        box = _random_box(image.size, rng)
        if box is None:
            return self.centre(image)
        return np.asarray(image.crop(box).resize((self.size, self.size), Resampling.BILINEAR))


def _random_box(
    image_size: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom of a random part; None if ten tries do not fit."""
    width, height = image_size
    for _ in range(10):
        area = width * height * rng.uniform(*_CROP_AREA)
        ratio = math.exp(rng.uniform(*_CROP_LOG_RATIO))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(rng.integers(free + 1)) for free in (width - w, height - h))
            return left, top, left + w, top + h
    return None


def open_rgb(path: Path) -> Image:
    """Return a file's image, decoded, as RGB; raises whatever Pillow does."""
    from PIL import Image as images

    with images.open(path) as image:
        if image.mode.startswith("I;16"):
            # Pillow would clip 16-bit grey at 255, to a white image.
            return images.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        if image.mode == "P" and "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")
        return image.convert("RGB")


def decode_error(path: Path, error: Exception) -> DataError:
    """Return the error for a file that cannot be decoded."""
    reason = " ".join(str(error).split())
    # Pillow's own message for a file of another format repeats the path.
    what = "it is not an image" if "cannot identify" in reason else reason or type(error).__name__
    return DataError(
        f"cannot decode the image '{path}' ({what}): replace or remove it, "
        "or skip such files with skip_broken=True"
    )


def cpu_count() -> int:
    """Return the number of CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def decode_all(
    paths: Sequence[Path], frame: Frame, *, skip_broken: bool, keep: bool = True
) -> tuple[Pixels, list[int]]:
    """Decode files in parallel threads.

    Args:
        paths: the image files.
        frame: how each becomes a square image.
        skip_broken: whether to skip what cannot be decoded.
        keep: False only checks the files, in little memory.

    Returns:
        The decoded images, `[N, size, size, 3]`, and the positions in `paths` of the files that
        were skipped.

    Raises:
        DataError: a file cannot be decoded and `skip_broken` is False; it is named.
    """
    pixels = np.empty((len(paths) if keep else 0, frame.size, frame.size, 3), dtype=np.uint8)

    # In the order of the disk, not the caller's random one.
    order = sorted(range(len(paths)), key=lambda position: str(paths[position]))

    def decode(start: int) -> list[tuple[int, Exception]]:
        failed: list[tuple[int, Exception]] = []
        for position in order[start : start + _CHUNK]:
            try:
                image = frame.centre(open_rgb(paths[position]))
            except MemoryError:
                raise
            except Exception as error:  # a damaged file makes decoders raise anything
                failed.append((position, error))
                continue
            if keep:
                pixels[position] = image
        return failed

    broken: list[int] = []
    with ThreadPoolExecutor(cpu_count()) as pool:
        for failed in pool.map(decode, range(0, len(paths), _CHUNK)):
            if failed and not skip_broken:
                pool.shutdown(wait=False, cancel_futures=True)
                position, error = failed[0]
                raise decode_error(paths[position], error) from error
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
