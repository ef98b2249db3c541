"""Rectifiers that learn how linear they may become, as a method sees them in a step's network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from shoal.network import Site
from shoal.network.modules import Blend, ByChannel, Line
from shoal.search.notebook import Notebook
from shoal.surgery import FittedLine


class Blending(Notebook):
    """The verbs for blends of rectifiers with lines; `Lab.replace` puts them in."""

    def blend(
        self, site: Site, line: FittedLine | None = None, by_channel: bool = False
    ) -> nn.Module:
        """Return a site's rectifier with a slope that can be learned, to `replace` it with.

        It computes α·l(z) + (1 − α)·r(z) with α = 0 at first, for each channel if asked for; see
        `slopes`. Without a line l is the identity.
        """
        linear = None if line is None else line.layer(torch.empty(0), site.channel_dim)
        slope = torch.zeros(site.channel_shape if by_channel else ())
        return Blend(self.network.get_submodule(site.name), slope, linear)

    def blended(self, site: Site) -> nn.Module:
        """Return the rectifier that `blend` was given, to put it back."""
        return cast("Blend", self.network.get_submodule(site.name)).rectifier

    def slopes(self, network: nn.Module | None = None) -> dict[str, nn.Parameter]:
        """Return the slopes that can be learned, by the names of their sites."""
        modules = (network or self.network).named_modules()
        return {name: module.slope for name, module in modules if isinstance(module, Blend)}

    def learned_lines(self) -> dict[str, FittedLine]:
        """Return the lines of blends as training left them, by the names of their sites."""
        blends = {n: m for n, m in self.network.named_modules() if isinstance(m, Blend)}
        arms = {name: blend.linear for name, blend in blends.items()}
        return {
            name: FittedLine(line.slope, line.intercept, math.nan)
            for name, line in arms.items()
            if isinstance(line, Line)
        }

    def by_channel(self, site: Site, on: Sequence[bool]) -> nn.Module:
        """Return a blend's rectifier on the channels that are `on`, and its line on the others."""
        blend = cast("Blend", self.network.get_submodule(site.name))
        mask = torch.tensor(on).view(site.channel_shape)
        return ByChannel(blend.rectifier, blend.linear, mask)
