"""How far a block moves what goes through it (LaCoOT, Quétu et al. 2025).

The max-sliced Wasserstein distance of a batch before and after a block is the largest, over
directions θ, of the distances of the two batches projected on θ, each sorted. It ignores which
sample went where; the paired distance does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from shoal.data.batch import Batch
from shoal.importance.criterion import register_criterion
from shoal.importance.ends import BetweenEnds, following_rectifier
from shoal.network import Network
from shoal.network.blocks import Block
from shoal.options import DistanceOptions, option
from shoal.seeds import derive_seed


def sliced_distances(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """Return the 2-Wasserstein distance of two sets of points along each direction.

    That is (mean_i (sort(Xθ)_i − sort(Yθ)_i)²)^½, which gradients flow through.

    Args:
        x: `[points, d]`.
        y: as many points, `[points, d]`.
        directions: unit vectors, `[d, directions]`.
    """
    gaps = (x @ directions).sort(0).values - (y @ directions).sort(0).values
    # The norm's gradient is 0 where there is no gap, that of a square root is not finite.
    return torch.linalg.vector_norm(gaps, dim=0) / math.sqrt(len(x))


def max_sliced_distance(
    x: Tensor,
    y: Tensor,
    directions: int = 50,
    optimise: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the largest distance of two sets of points, `[points, d]`, over directions.

    Args:
        x: the one set.
        y: the other, with as many points.
        directions: so many random ones are tried, drawn anew at each call (the paper has 50).
        optimise: also try the direction from mean to mean, and take so many steps of ascent from
            the best of all. The distance then is at least that of the means, of which 50 random
            directions see about 2.5 / √d.
        generator: of the random directions, on its own device; None takes the global one of x's.
    """
    with torch.no_grad():
        where = x.device if generator is None else generator.device
        size = x.shape[1], directions
        tried = torch.randn(size, device=where, dtype=x.dtype, generator=generator).to(x.device)
        if optimise:
            tried = torch.cat([(x - y).mean(0)[:, None], tried], 1)
        tried = torch.nn.functional.normalize(tried, dim=0)
        if optimise:
            tried = _ascended(x, y, tried, optimise)
    return sliced_distances(x, y, tried).max()


def _ascended(x: Tensor, y: Tensor, tried: Tensor, steps: int) -> Tensor:
    """Return the best direction that steps of ascent from the best of those tried come across.

    For points matched in the order of their projections the squared distance is θᵀMθ with
    M = mean_i (x_i − y_i)(x_i − y_i)ᵀ; a step goes to Mθ, of unit length.
    """
    found = sliced_distances(x, y, tried)
    best = theta = tried[:, found.argmax()]
    distance = found.max()
    for _ in range(steps):
        apart = x[(x @ theta).argsort()] - y[(y @ theta).argsort()]
        theta = torch.nn.functional.normalize((apart @ theta) @ apart, dim=0)
        reached = sliced_distances(x, y, theta[:, None])[0]
        best = torch.where(reached > distance, theta, best)
        distance = torch.maximum(reached, distance)
    return best[:, None]


def distance_of(
    x: Tensor, y: Tensor, options: DistanceOptions, generator: torch.Generator | None = None
) -> Tensor:
    """Return how far two batches of feature maps, `[batch, …]`, are from each other, `[]`.

    That is the max-sliced distance, divided by the root mean square length of the samples of x if
    it is to be relative; of pairs, mean ‖y − x‖² / mean ‖x‖².
    """
    x, y = (value.flatten(1) for value in (x, y))
    if x.dtype not in (torch.float32, torch.float64):
        x, y = x.float(), y.float()
    size = x.square().sum(1).mean().clamp(min=torch.finfo(x.dtype).tiny)
    if options.paired:
        return (y - x).square().sum(1).mean() / size
    with torch.autocast(x.device.type, enabled=False):  # 8 bits would reorder what is sorted
        found = max_sliced_distance(x, y, options.directions, options.optimise, generator)
    return found / size.sqrt() if options.relative else found


def block_distance(
    network: Network, options: DistanceOptions
) -> Callable[[nn.Module, Mapping[str, Any]], Tensor]:
    """Return the mean distance over blocks, as a penalty to train with: see `shoal.training.fit`.

    Both sides are taken behind the rectifier that follows the block, where one does: what goes in
    comes out of it so once the block is dropped.
    """
    sites = {block.name: following_rectifier(network, block.addition) for block in network.blocks}
    after = {name: None if site is None else site.name for name, site in sites.items()}

    def mean(trained: nn.Module, values: Mapping[str, Any]) -> Tensor:
        found = []
        for name, ends in values.items():
            path = after[name]
            x, y = ends if path is None else map(trained.get_submodule(path).forward, ends)
            found.append(distance_of(x, y, options))
        return torch.stack(found).mean()

    return mean


@register_criterion("transport")
class Transport(BetweenEnds):
    """Scores a block by the distance of what comes out of it from what goes in (LaCoOT).

    The score is the mean over batches, and larger batches have other distances. One pass, no
    labels.
    """

    asks = frozenset({"seed"})

    @dataclass(frozen=True, kw_only=True)
    class Options(BetweenEnds.Options, DistanceOptions):
        """Which distance, and the seed."""

        seed: int = option(0, "Of the random directions.")

    options: Options

    @override
    def attach(self, network: Network) -> Sequence[RemovableHandle]:
        self._generator = torch.Generator()
        return super().attach(network)

    @override
    def begin(self, index: int, batch: Batch) -> None:
        self._generator.manual_seed(derive_seed(self.options.seed, "transport", index))

    @override
    def of_ends(self, block: Block, x: Tensor, y: Tensor) -> tuple[float, int]:
        return float(distance_of(x, y, self.options, self._generator)), 1
