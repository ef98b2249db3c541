"""Changes of colour, of whole batches `[B, H, W, 3]` of red, green and blue from 0 to 255."""

from __future__ import annotations

import torch
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue in a grey (ITU-R 601, as Pillow has it)


def grey_of(images: Tensor) -> Tensor:
    """Return how light each pixel is, `[B, H, W, 1]`."""
    return (images @ images.new_tensor(_LUMA))[..., None]


def saturated(images: Tensor, factors: Tensor) -> Tensor:
    """Return images with each pixel's distance to its grey scaled by `factors`, `[B, 1, 1, 1]`."""
    return grey_of(images).lerp(images, factors).clamp_(0, 255)


def greyed(images: Tensor, chosen: Tensor) -> Tensor:
    """Return the images with the `chosen`, `[B]`, in grey."""
    return torch.where(chosen[:, None, None, None], grey_of(images), images)


def hue_turned(images: Tensor, turns: Tensor) -> Tensor:
    """Return images with the hue of each pixel turned by `turns` of the circle, `[B, 1, 1]`.

    Value and saturation stay, in the colour space HSV.
    """
    red, green, blue = images.unbind(-1)
    value = images.amax(-1)
    chroma = value - images.amin(-1)
    unit = chroma.clamp(min=1e-6)
    # In sixths of the circle from red, by which of the three is the largest.
    hue = torch.where(
        value == red,
        (green - blue) / unit,
        torch.where(value == green, (blue - red) / unit + 2, (red - green) / unit + 4),
    )
    hue = hue + 6 * turns
    place = torch.stack([5 + hue, 3 + hue, 1 + hue], -1).remainder(6)
    share = torch.minimum(place, 4 - place).clamp_(0, 1)
    return value[..., None] - chroma[..., None] * share
