"""The shape of a layer that can stand for a stretch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["MAX_COLUMNS", "LayerShape"]

MAX_COLUMNS = 10_240
"""The most columns a fit may have: its matrices then stay below 2 GiB."""

_ROWS_PER_COLUMN = 8  # positions that pin the weights down well
_FEWEST_ROWS = 32_768


@dataclass(frozen=True)
class LayerShape:
    """The layer to fit: a convolution, or a linear layer where there is no kernel.

    Attributes:
        in_channels: channels, or features in the last dimension, of the input.
        out_channels: the same of the output.
        kernel_size: (height, width); () for a linear layer, as the following.
        stride: per axis.
        padding: zeros on both sides, per axis.
        dilation: per axis.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    @property
    def columns(self) -> int:
        """Weights per output channel, the bias not counted."""
        return self.in_channels * math.prod(self.kernel_size)

    @property
    def rows(self) -> int:
        """Positions to fit on: enough that more would hardly change the weights."""
        return max(_FEWEST_ROWS, _ROWS_PER_COLUMN * self.columns)

    @property
    def fit_bytes(self) -> int:
        """The memory of the matrices while the data stream by."""
        return 8 * self.columns * (self.columns + self.out_channels)

    def make(self, **factory: Any) -> nn.Conv2d | nn.Linear:
        """Return a new layer of this shape, with a bias; `factory` is its device and dtype."""
        if not self.kernel_size:
            return nn.Linear(self.in_channels, self.out_channels, **factory)
        return nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            stride=self.stride,  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
            **factory,
        )
