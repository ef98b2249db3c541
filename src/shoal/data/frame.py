"""How an image of any size becomes a square one: the same each time, or cut at random.

Resizing and cropping round as torchvision's transforms do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shoal.errors import OptionError

Pixels = NDArray[np.uint8]

_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))  # of a cut part's width to its height
_BILINEAR = Image.Resampling.BILINEAR


@dataclass(frozen=True)
class Cut:
    """Which part of an image is taken at random to train on.

    Attributes:
        area: a part of this share of the image, of a shape from 3:4 to 4:3, is resized to the full
            size: by default the usual choice for ImageNet (Szegedy et al. 2015). None takes a
            square of the full size out of the resized image.
        resized: whether the part is taken from the image after it was resized.
        rotation: the image is rotated before by up to this many degrees either way; what comes in
            is black.
    """

    area: tuple[float, float] | None = (0.08, 1.0)
    resized: bool = False
    rotation: float = 0.0


@dataclass(frozen=True)
class Frame:
    """How an image becomes a square: resized to a short side of `resize`, cut to `size` pixels.

    Attributes:
        size: of the square, in pixels.
        resize: of the short side before it is cut, in pixels.
        squeeze: whether both sides become `resize`, whatever the image's shape.
        cut: what `random` takes.
    """

    size: int
    resize: int
    squeeze: bool = False
    cut: Cut = Cut()

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise OptionError("size", self.size, f"1 to {self.resize} pixels")

    def centre(self, image: Image.Image) -> Pixels:
        """Return the resized image's centre, `[size, size, 3]`."""
        image = self._resized(image)
        width, height = image.size
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        if (width, height) != (self.size, self.size):
            image = image.crop((left, top, left + self.size, top + self.size))
        return np.asarray(image)

    def random(self, image: Image.Image, rng: np.random.Generator) -> Pixels:
        """Return a random part of the image, `[size, size, 3]`."""
        cut = self.cut
        if cut.rotation:
            image = image.rotate(rng.uniform(-cut.rotation, cut.rotation), _BILINEAR)
        if cut.resized or cut.area is None:
            image = self._resized(image)
        if cut.area is None:
            return np.asarray(image.crop(_box(image, self.size, self.size, rng)))
        width, height = image.size
        for _ in range(10):
            area = width * height * rng.uniform(*cut.area)
            ratio = math.exp(rng.uniform(*_LOG_RATIO))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                part = image.crop(_box(image, w, h, rng))
                return np.asarray(part.resize((self.size, self.size), _BILINEAR))
        return self.centre(image)  # too narrow for such a part

    def _resized(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        short = min(width, height)
        # The longer side is rounded down, as torchvision does.
        size = (self.resize * width // short, self.resize * height // short)
        if self.squeeze:
            size = (self.resize, self.resize)
        return image if size == image.size else image.resize(size, _BILINEAR)


def _box(
    image: Image.Image, width: int, height: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return a box of this size, anywhere in the image."""
    free = image.size[0] - width, image.size[1] - height
    left, top = (int(rng.integers(pixels + 1)) for pixels in free)
    return left, top, left + width, top + height
