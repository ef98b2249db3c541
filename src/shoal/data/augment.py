"""Random augmentation of whole batches, on the device where the images are.

Each image draws its own numbers, which follow from the seed, the epoch and its place in the global
batch, so that several processes change their images as one process would. `torchvision.transforms`
draws from the global generator, once for a whole batch; image by image it takes 12 times as long
for a mirror and a shift (219 ms against 18 ms for 128 images of 32 pixels on one core), and it is
not part of what shoal needs to run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from shoal.data.batch import sent
from shoal.data.colour import greyed, hue_turned, saturated
from shoal.errors import OptionError, unknown_name

# The columns of a batch's random numbers; their order is part of what a seed means.
_COLUMNS = ("flip", "vertical_flip", "down", "right", "rotation", "brightness", "contrast")
_COLOUR_COLUMNS = ("saturation", "hue", "grey")  # drawn after them, and only where they are used


@dataclass(frozen=True)
class Augment:
    """Which random changes training images get; every image draws its own.

    Augmentation is deterministic given its random numbers: `draw` makes them for a batch, `apply`
    uses them, and a process that holds a slice of the batch uses the same slice of the numbers.

    Attributes:
        flip: mirror left and right with this probability; True is 1/2.
        crop: shift by up to this many pixels in either direction; what comes in is black, as if
            the image had been padded by `crop` pixels and cropped at random.
        vertical_flip: mirror top and bottom, likewise.
        rotation: rotate by up to this many degrees either way; what comes in is black.
        brightness: multiply by a factor within 1 ± this.
        contrast: scale the distance to the image's mean grey by a factor within 1 ± this.
        saturation: scale each pixel's distance to its grey by a factor within 1 ± this.
        hue: turn the hue by up to this share of the colour circle either way, at most 0.5.
        grey: take the colour away with this probability.
        mix: mix each image, and its label, with another one of the batch, as `shoal.data.mix` does;
            this is the α of the beta distribution that says how much. 0 mixes nothing.

    Raises:
        OptionError: a value is out of its range.
    """

    flip: bool | float = False
    crop: int = 0
    vertical_flip: bool | float = False
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    mix: float = 0.0

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise OptionError("crop", self.crop, "at least 0 pixels")
        if not 0.0 <= self.rotation <= 180.0:
            raise OptionError("rotation", self.rotation, "0 to 180 degrees")
        for name in ("flip", "vertical_flip", "brightness", "contrast", "saturation", "grey"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise OptionError(name, getattr(self, name), "a number from 0 to 1")
        if not 0.0 <= self.hue <= 0.5:
            raise OptionError("hue", self.hue, "0 to 0.5 of the colour circle")
        if not 0.0 <= self.mix < math.inf:
            raise OptionError("mix", self.mix, "a number of at least 0")

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the random numbers of `count` images in [0, 1): `[count, 7]`, 10 for colour."""
        draws = rng.random((count, len(_COLUMNS)))
        if not self._colours:
            return draws
        return np.concatenate([draws, rng.random((count, len(_COLOUR_COLUMNS)))], axis=1)

    @property
    def _colours(self) -> bool:
        return bool(self.saturation or self.hue or self.grey)

    def apply(self, images: Tensor, draws: NDArray[np.float64]) -> Tensor:
        """Return uint8 images `[B, H, W, C]` changed, each by its row of what `draw` returned.

        Values are 0 to 255, uint8 or float32.
        """
        names = [*_COLUMNS, *_COLOUR_COLUMNS]
        columns = {name: torch.from_numpy(column) for name, column in zip(names, draws.T)}  # noqa: B905
        if self.flip or self.vertical_flip or self.crop:
            images = self._move_pixels(images, columns)
        if self.rotation:
            images = _rotate(images.float(), (2 * columns["rotation"] - 1) * self.rotation)
        if self.brightness:
            images = images * _factors(columns["brightness"], self.brightness, images.device)
            images = images.clamp(0, 255)
        if self.contrast:
            images = images.float()
            grey = images.mean((1, 2, 3), keepdim=True)
            factors = _factors(columns["contrast"], self.contrast, images.device)
            images = (grey + (images - grey) * factors).clamp(0, 255)
        return self._coloured(images, columns) if self._colours else images

    def _coloured(self, images: Tensor, columns: dict[str, Tensor]) -> Tensor:
        """Return the images with other colours; what has no colour stays as it is."""
        if images.shape[-1] != 3:
            return images
        device, planes = images.device, images.permute(3, 0, 1, 2).float().contiguous()
        if self.saturation:
            factors = _factors(columns["saturation"], self.saturation, device)
            planes = saturated(planes, factors[..., 0])
        if self.hue:
            turns = ((2 * columns["hue"] - 1) * self.hue).float()
            planes = hue_turned(planes, sent(turns, device)[:, None, None])
        if self.grey:
            planes = greyed(planes, sent(columns["grey"] < self.grey, device))
        return planes.permute(1, 2, 3, 0).contiguous()

    def _move_pixels(self, images: Tensor, columns: dict[str, Tensor]) -> Tensor:
        # One gather of whole pixels flips and shifts.
        batch, height, width, channels = images.shape
        device, pad = images.device, self.crop
        padded = F.pad(images, (0, 0, pad, pad, pad, pad)) if pad else images
        rows = sent(self._positions(height, columns, "vertical_flip", "down"), device)
        cols = sent(self._positions(width, columns, "flip", "right"), device)
        first = torch.arange(batch, device=device)[:, None] * (height + 2 * pad)
        pixels = (first + rows)[:, :, None] * (width + 2 * pad) + cols[:, None, :]  # [B, H, W]
        flat = padded.reshape(-1, channels).index_select(0, pixels.flatten())
        return flat.view(batch, height, width, channels)

    def _positions(self, size: int, columns: dict[str, Tensor], flip: str, shift: str) -> Tensor:
        """Return where each of `size` rows or columns comes from in the padded image, `[B, size]`.

        The image is cropped first, then mirrored.
        """
        steps = torch.arange(size).expand(len(columns[flip]), size)
        chance = getattr(self, flip)
        if chance:
            mirrored = columns[flip][:, None] < (0.5 if chance is True else chance)
            steps = torch.where(mirrored, size - 1 - steps, steps)
        offset = (columns[shift] * (2 * self.crop + 1)).long().clamp_(max=2 * self.crop)
        return steps + offset[:, None]


def _factors(uniform: Tensor, spread: float, device: torch.device) -> Tensor:
    """Return the factors of the images, `[B, 1, 1, 1]`."""
    return sent((1 + (2 * uniform - 1) * spread).float(), device)[:, None, None, None]


def _rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image about its centre, bilinear, black outside; `[B, H, W, C]`."""
    height, width = images.shape[1:3]
    angle = torch.deg2rad(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Coordinates run from -1 to 1 along either side: a side's length turns them into pixels.
    rows = [cos, -sin * height / width, zero, sin * width / height, cos, zero]
    theta = sent(torch.stack(rows, 1).view(-1, 2, 3).float(), images.device)
    channels_first = images.permute(0, 3, 1, 2)
    grid = F.affine_grid(theta, list(channels_first.shape), align_corners=False)
    return F.grid_sample(channels_first, grid, align_corners=False).permute(0, 2, 3, 1)


PRESETS: dict[str, Augment] = {
    "none": Augment(),
    "flip_crop": Augment(flip=True, crop=4),  # the usual recipe of CIFAR
    "shift": Augment(crop=1),
}


def resolve_augment(choice: str | Augment | None, auto: Augment) -> Augment:
    """Return an augmentation by name, or `auto` for "auto"; None is no augmentation."""
    if isinstance(choice, Augment):
        return choice
    presets = PRESETS | {"auto": auto}
    name = choice or "none"
    if name not in presets:
        raise unknown_name("augmentation", name, presets)
    return presets[name]
