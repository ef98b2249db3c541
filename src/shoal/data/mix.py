"""MixUp and CutMix: each image of a batch, and its label, mixed with the one before it.

One of the two is drawn for each batch, with equal chances. MixUp takes λ of the image and 1 − λ of
the other (Zhang et al. 2018, section 2); CutMix pastes a rectangle of the other of 1 − λ of the
area (Yun et al. 2019, section 3.1). λ is of the beta distribution B(α, α).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Mixing:
    """How the images of one batch are mixed.

    Attributes:
        share: of the image itself in the result, and of its label.
        box: the rectangle of the other image (top, bottom, left, right); None is MixUp.
    """

    share: float
    box: tuple[int, int, int, int] | None = None

    @classmethod
    def draw(cls, alpha: float, height: int, width: int, rng: np.random.Generator) -> Mixing:
        """Return the mixing of a batch of images of this size."""
        share, cut = float(rng.beta(alpha, alpha)), rng.random() < 0.5
        if not cut:
            return cls(share)
        row, column = int(rng.integers(height)), int(rng.integers(width))
        half = 0.5 * math.sqrt(1 - share)
        top, bottom = _around(row, half * height, height)
        left, right = _around(column, half * width, width)
        # What lies outside of the image is not pasted.
        pasted = (bottom - top) * (right - left) / (height * width)
        return cls(1 - pasted, (top, bottom, left, right))

    def images(self, images: Tensor) -> Tensor:
        """Return images `[B, H, W, C]` of `[B + 1, H, W, C]`, each mixed with the one before it."""
        others, own = images[:-1], images[1:]
        if self.box is None:
            return others.float().lerp(own.float(), self.share)
        top, bottom, left, right = self.box
        mixed = own.clone()
        mixed[:, top:bottom, left:right] = others[:, top:bottom, left:right]
        return mixed

    def labels(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return probabilities `[B, classes]` of the labels `[B + 1]`, likewise."""
        each = F.one_hot(labels, num_classes).float()
        return each[:-1].lerp(each[1:], self.share)


def _around(centre: int, half: float, size: int) -> tuple[int, int]:
    return max(0, int(centre - half)), min(size, int(centre + half))
