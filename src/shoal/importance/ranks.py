"""HRank: how many independent rows the feature maps of a block have."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from shoal.errors import ConfigError
from shoal.importance.candidates import relative_to_stage
from shoal.importance.criterion import ScopeOptions, Scores, register_criterion
from shoal.importance.ends import BetweenEnds
from shoal.network.blocks import Block


@register_criterion("hrank")
class HRank(BetweenEnds):
    """Scores a block by the mean rank of the feature maps that come out of it.

    After Lin et al. 2020 (HRank, eq. 6), who score the channels of a layer so; Jordao et al. 2023
    compare it for blocks. A map is one channel of one sample, a matrix of its rows and columns;
    where a channel has one dimension, as of tokens, it is the sample's matrix of positions by
    channels. A map of zeros has rank 0. One pass, no labels. `details` holds the bare rank,
    whatever the scope: it is at most the shorter side of a map, and so follows the stage.

    A singular value decomposition of every map takes longer than the network. Ranks hardly differ
    between samples, so a few hundred are enough (500 in Lin et al.): give `samples`.
    """

    Options = ScopeOptions
    options: ScopeOptions
    in_pieces = True

    @override
    def of_ends(self, block: Block, x: Tensor, y: Tensor) -> tuple[float, int]:
        if y.dim() < 3:
            raise ConfigError(
                f"what comes out of block '{block.name}' has no feature maps to take ranks of: "
                "choose another criterion than hrank, such as cka"
            )
        ranks = torch.linalg.matrix_rank(_maps(y, self.channels(block)))
        return float(ranks.sum()), ranks.numel()

    @override
    def scores(self) -> Scores:
        ranks = super().scores()
        details = {name: {"rank": rank} for name, rank in ranks.items()}
        values = dict(ranks)
        if self.options.scope == "stage":
            values = relative_to_stage(values, self._network)
        return replace(ranks, by_name=values, details=details)


def _maps(value: Tensor, channels: int) -> Tensor:
    """Return a batch's maps as a stack of matrices; `channels` is the dimension of channels."""
    if value.dtype not in (torch.float32, torch.float64):
        value = value.float()
    value = value.movedim(channels, 1)
    return value.flatten(0, 1).flatten(2) if value.dim() > 3 else value.flatten(2)
