"""Changes of colour, of whole batches of red, green and blue from 0 to 255.

They lie plane by plane, `[3, B, H, W]`: pixel by pixel, the same takes three times as long.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue in a grey (ITU-R 601, as Pillow has it)


def grey_of(planes: Tensor) -> Tensor:
    """Return how light each pixel is, `[B, H, W]`."""
    return torch.einsum("cbhw,c->bhw", planes, planes.new_tensor(_LUMA))


def saturated(planes: Tensor, factors: Tensor) -> Tensor:
    """Return images with each pixel's distance to its grey scaled by `factors`, `[B, 1, 1]`."""
    return grey_of(planes).lerp(planes, factors).clamp_(0, 255)


def greyed(planes: Tensor, chosen: Tensor) -> Tensor:
    """Return the images with the `chosen`, `[B]`, in grey."""
    return torch.where(chosen[:, None, None], grey_of(planes), planes)


def hue_turned(planes: Tensor, turns: Tensor) -> Tensor:
    """Return images with the hue of each pixel turned by `turns` of the circle, `[B, 1, 1]`.

    Value and saturation stay, in the colour space HSV.
    """
    red, green, blue = planes
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.clamp(min=1e-6).reciprocal_()
    # In sixths of the circle from red, by which of the three is the largest.
    hue = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    )
    hue += 6 * turns
    turned = torch.empty_like(planes)
    for plane, start in zip(turned, (5, 3, 1), strict=True):
        place = hue + start
        place -= (place / 6).floor_().mul_(6)
        # How much of the chroma is missing: 1 from 1 to 3, 0 from 4 on, and linear between.
        missing = place.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
        torch.sub(value, missing.mul_(chroma), out=plane)
    return turned
