"""Line loss: what linearizing a site, as `linearize_` does it, costs before fine-tuning.

The entropy says how close to linear a rectifier acts, but not how much it would be missed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from typing_extensions import override

from shoal.importance.criterion import Criterion, register_criterion
from shoal.importance.entropy import Entropy
from shoal.importance.replaced import Replacement, TrialOptions, replacement_scores
from shoal.importance.scores import Scores
from shoal.modes import device_of
from shoal.network import Network, Site
from shoal.options import at_least, one_of, option
from shoal.passes.batches import Data
from shoal.passes.lines import FittedLine, LineMoments
from shoal.passes.observe import Observer, observe

__all__ = ["LineLoss", "computing_line", "unchanged"]


@register_criterion("line_loss")
class LineLoss(Criterion):
    """Scores a site by the rise of the loss where its line takes the rectifier's place.

    A first pass fits the lines. A second one runs the network on each batch and, for each site,
    again from the site on. Needs labels.
    """

    place = "site"
    asks = frozenset({"how", "keep"})

    @dataclass(frozen=True, kw_only=True)
    class Options(TrialOptions):
        """Which lines are fitted, and how what they cost is judged."""

        how: str = option(
            "line",
            "What takes the rectifier's place: its line, or identity, the line of slope 1 "
            "through 0.",
            check=one_of("line", "identity"),
        )
        screen: int | None = option(
            None,
            "Judge and score only this many sites, those with the lowest entropy. By default all.",
            check=at_least(1),
        )
        line_samples: int | None = option(
            512, "Fit the lines on this many samples; null uses all.", check=at_least(1)
        )
        positions: int | None = option(
            8192,
            "Fit the lines on about this many positions of each batch; null uses all.",
            check=at_least(1),
        )

    options: Options

    @override
    def compute(self, network: Network, data: Data) -> Scores:
        replacements = self._replacements(network, data)
        return replacement_scores(self.name, network, replacements, data, self.options)

    def _replacements(self, network: Network, data: Data) -> list[Replacement]:
        """Return what is tried for each site that is to be judged."""
        own, device = self.options, device_of(network)
        moments, entropy = LineMoments(positions=own.positions), Entropy()
        needed = ((moments, own.how == "line"), (entropy, own.screen is not None))
        observers: list[Observer] = [observer for observer, is_needed in needed if is_needed]
        if observers:
            few = [n for n in (own.line_samples, data.samples) if n is not None]
            observe(network, data.loader, observers, samples=min(few, default=None))
        lines = moments.lines()
        judged = [site for site in network.sites if site.linearized is None]
        if own.screen is not None:
            screened = entropy.scores().lowest(own.screen)
            judged = [site for site in judged if site.name in screened]
        replacements = []
        for site in judged:
            line, (source, *_) = lines.get(site.name), site.node.all_input_nodes
            compute = unchanged if line is None else computing_line(line, site, device)
            replacements.append(Replacement(site.name, site.node, source, compute))
        return replacements


def unchanged(value: Tensor) -> Tensor:
    """Compute an identity."""
    return value


def computing_line(
    line: FittedLine, site: Site, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return the function that applies the line to a site's input."""
    slope, intercept = (v.to(device, torch.float32) for v in (line.slope, line.intercept))
    return partial(_apply, slope, intercept, site.channel_dim)


def _apply(slope: Tensor, intercept: Tensor, channel_dim: int, z: Tensor) -> Tensor:
    """Return slope·z + intercept in the type of z, as the network itself would hold it."""
    shape = [1] * z.dim()
    shape[channel_dim] = -1
    return torch.addcmul(intercept.to(z.dtype).view(shape), z, slope.to(z.dtype).view(shape))
