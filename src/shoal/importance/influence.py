"""Block influence: how much a block turns what goes through it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

from shoal.importance.criterion import Scores, register_criterion
from shoal.importance.ends import BetweenEnds
from shoal.network.blocks import Block
from shoal.options import one_of, option


@register_criterion("block_influence")
class BlockInfluence(BetweenEnds):
    """Scores a block by 1 − E[cos(x_in, x_out)] (ShortGPT, Men et al. 2024, eq. 1).

    x_in is what goes into the block by the shortcut, x_out what comes out of it. A block that does
    nothing scores 0. One pass, no labels.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(BetweenEnds.Options):
        """What one vector is."""

        vectors: str = option(
            "auto",
            "position takes the channels at one position, as ShortGPT has it for tokens; sample a "
            "whole feature map; auto takes positions where channels come last (tokens), samples "
            "where they come second (images in convolutional networks).",
            check=one_of("auto", "position", "sample"),
        )

    options: Options
    in_pieces = True

    @override
    def of_ends(self, block: Block, x: Tensor, y: Tensor) -> tuple[float, int]:
        vectors, dim = self.options.vectors, self.channels(block)
        whole = vectors == "sample" or (vectors == "auto" and dim != x.dim() - 1)
        cosines = _cosines(x, y, None if whole else dim)
        return float(cosines.sum()), cosines.numel()

    @override
    def scores(self) -> Scores:
        cosines = super().scores()
        # A block that changes nothing is not below 0, whatever rounding does; NaN stays.
        values = {name: max(1.0 - cosine, 0.0) for name, cosine in cosines.items()}
        return replace(cosines, by_name=values)


def _cosines(x: Tensor, y: Tensor, dim: int | None) -> Tensor:
    """Return the cosines in float64: 1 for two zero vectors, 0 for one."""
    if x.dtype not in (torch.float32, torch.float64):
        x, y = x.float(), y.float()
    if dim is None:
        x, y, dim = x.flatten(1), y.flatten(1), 1
    products, x_norms, y_norms = (x * y).sum(dim), x.norm(dim=dim), y.norm(dim=dim)
    if x.device.type == "mps":  # it has no float64
        products, x_norms, y_norms = products.cpu(), x_norms.cpu(), y_norms.cpu()
    lengths = x_norms.double() * y_norms.double()
    empty = lengths == 0
    cosines = products.double() / lengths.masked_fill(empty, 1.0)
    both = (x_norms == 0) & (y_norms == 0)
    return torch.where(empty, both.double(), cosines)
