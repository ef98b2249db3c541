"""The rectifiers of a step's network: what they cost, and how linear they may become."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import nn

from shoal.importance import Scores
from shoal.measure import SiteStage, rectifier_evaluations, rectifier_stages
from shoal.network import Network, Site
from shoal.network.modules import Blend, ByChannel, Line
from shoal.search.notebook import Notebook
from shoal.surgery import FittedLine, linearize_


class Blending(Notebook):
    """The verbs for counting rectifiers, and for blends of them with lines that learn."""

    def evaluations(self, network: Network | None = None) -> dict[str, int]:
        """Return the rectifier evaluations of a sample by site: `measure.rectifier_evaluations`."""
        return rectifier_evaluations(network or self.network)

    def site_stages(self, network: Network | None = None) -> list[SiteStage]:
        """Return the stages of a network's sites: its sites, by the resolution they see."""
        return rectifier_stages(network or self.network)

    def rank(self, criterion: str, scores: Mapping[str, float]) -> None:
        """Keep scores that the method found by its own means, on validation data."""
        self.scores = Scores(criterion, scores, samples=0)

    def linearizing(
        self, names: Sequence[str], how: str, lines: Mapping[str, FittedLine]
    ) -> Callable[[Network], object]:
        """Return a change for `Lab.trial`: sites become lines, or the identity."""
        return partial(linearize_, names=names, how=how, lines=lines)

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
