"""Line loss: how much the loss rises where a site's rectifier is replaced by its fitted line.

The entropy asks how close to linear a rectifier acts and ignores by how much it would be missed.
This asks directly what linearizing the site, as `linearize_` does it, costs before fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from shoal.errors import ConfigError
from shoal.importance.criteria import criteria
from shoal.importance.entropy import Entropy
from shoal.importance.replaced import Replacement, check_metric, replacement_scores
from shoal.importance.scores import Scores
from shoal.modes import device_of
from shoal.network import Network, Site
from shoal.passes.lines import FittedLine, LineMoments
from shoal.passes.observe import Observer, observe
from shoal.surgery.linearize import check_how

__all__ = ["LineLoss", "computing_line", "unchanged"]


@criteria.register("line_loss")
class LineLoss:
    """Scores a site by the rise of the loss where its line takes the rectifier's place.

    A first pass fits the lines. A second one runs the network on each batch and, for each site,
    again from the site on. Needs labels.

    Args:
        how: what takes the rectifier's place, "line" or "identity", the line of slope 1 through 0.
        metric: "loss" scores the rise of the mean cross-entropy in nats, "accuracy" the points of
            accuracy lost.
        screen: judge only the so many sites with the lowest entropy; only they get scores. None
            judges all.
        keep: so many of the best are wanted; the others meet fewer samples, as their details tell,
            as it becomes plain that they are not among them. None judges all on all samples.
        line_samples: fit the lines on so many samples; None uses all.
        positions: fit the lines on about so many positions of each batch; None uses all.
        precision: of the second pass: "auto" takes bf16 where the hardware computes in it; or
            "fp32", "bf16", "fp16".

    Raises:
        ConfigError: an option makes no sense.
    """

    name = "line_loss"
    unit = "site"

    def __init__(
        self,
        *,
        how: str = "line",
        metric: str = "loss",
        screen: int | None = None,
        keep: int | None = 1,
        line_samples: int | None = 512,
        positions: int | None = 8192,
        precision: str = "auto",
    ) -> None:
        check_metric(metric)
        if screen is not None and screen < 1:
            raise ConfigError(f"screen is {screen}: give at least 1, or leave it out for all sites")
        check_how(how)
        self.how = how
        self.metric = metric
        self.screen = screen
        self.keep = keep
        self.line_samples = line_samples
        self.positions = positions
        self.precision = precision

    def score(
        self,
        network: Network,
        loader: Iterable[Any],
        *,
        samples: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Scores:
        """Score the sites that have their rectifier; arguments as for `shoal.score`."""
        return replacement_scores(
            self.name,
            network,
            self._replacements(network, loader, samples),
            loader,
            metric=self.metric,
            precision=self.precision,
            keep=self.keep,
            samples=samples,
            progress=progress,
        )

    def _replacements(
        self, network: Network, loader: Iterable[Any], samples: int | None
    ) -> list[Replacement]:
        """Return what is tried for each site that is to be judged."""
        moments = LineMoments(positions=self.positions) if self.how == "line" else None
        entropy = Entropy() if self.screen is not None else None
        observers: list[Observer] = [o for o in (moments, entropy) if o is not None]
        if observers:
            few = [n for n in (self.line_samples, samples) if n is not None]
            observe(network, loader, observers, samples=min(few, default=None))
        lines = {} if moments is None else moments.lines()
        judged = [site for site in network.sites if site.linearized is None]
        if entropy is not None and self.screen is not None:
            screened = entropy.scores().lowest(self.screen)
            judged = [site for site in judged if site.name in screened]
        return [_replacement(network, site, lines.get(site.name)) for site in judged]


def _replacement(network: Network, site: Site, line: FittedLine | None) -> Replacement:
    node = network.node_of(site.name)
    compute = unchanged if line is None else computing_line(line, site, device_of(network))
    return Replacement(site.name, node, node.all_input_nodes[0], compute)


def unchanged(value: Tensor) -> Tensor:
    """Return what it is given: what an identity computes."""
    return value


def computing_line(
    line: FittedLine, site: Site, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return what gives the line's value of a site's input."""
    slope, intercept = (v.to(device, torch.float32) for v in (line.slope, line.intercept))
    return partial(_apply, slope, intercept, site.channel_dim)


def _apply(slope: Tensor, intercept: Tensor, channel_dim: int, z: Tensor) -> Tensor:
    """Return slope·z + intercept in the type of z, as the network itself would hold it."""
    shape = [1] * z.dim()
    shape[channel_dim] = -1
    return torch.addcmul(intercept.to(z.dtype).view(shape), z, slope.to(z.dtype).view(shape))
