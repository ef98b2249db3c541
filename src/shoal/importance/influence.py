"""Block influence: how much a block turns what goes through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from shoal.distributed import sum_across
from shoal.importance.candidates import block_candidates, following_rectifier
from shoal.importance.criterion import OnePass, Scores, register_criterion
from shoal.network import Network
from shoal.network.blocks import Block
from shoal.network.runner import Tap, listen
from shoal.options import one_of, option


@register_criterion("block_influence")
class BlockInfluence(OnePass):
    """Scores a block by 1 − E[cos(x_in, x_out)] (ShortGPT, Men et al. 2024, eq. 1).

    x_in is what goes into the block by the shortcut, x_out what comes out of it, behind the
    rectifier that follows the addition where one does (x_in then goes through it as well). A block
    that does nothing scores 0. One pass, no labels.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(OnePass.Options):
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
    def attach(self, network: Network) -> Sequence[RemovableHandle]:
        blocks = block_candidates(network)
        # By block, [2]: cosines and their number.
        self._sums = {b.name: torch.zeros(2, dtype=torch.float64) for b in blocks}
        return [listen(network, [self._tap(network, b) for b in blocks])]

    def _tap(self, network: Network, block: Block) -> Tap:
        rectifier = following_rectifier(network, block.addition)
        dim = network.view.channel_dim(block.addition)

        def add(x: Tensor, y: Tensor) -> None:
            if rectifier is not None:
                # Not a call of the module: others may listen to its calls.
                x = network.get_submodule(rectifier.name).forward(x)
            vectors = self.options.vectors
            whole = vectors == "sample" or (vectors == "auto" and dim != x.dim() - 1)
            cosines = _cosines(x, y, None if whole else dim)
            found = [float(cosines.sum()), cosines.numel()]
            self._sums[block.name] += torch.tensor(found, dtype=torch.float64)

        end = block.addition if rectifier is None else rectifier.node
        return Tap(end, (block.shortcut, end), add)

    @override
    def finish(self, samples: int, population: int | None) -> None:
        self._samples = samples
        for sums in self._sums.values():
            sum_across(sums)

    @override
    def scores(self) -> Scores:
        # A block that changes nothing is not below 0, whatever rounding does; NaN stays.
        values = {name: max(1.0 - float(s[0] / s[1]), 0.0) for name, s in self._sums.items()}
        return Scores(self.name, values, self._samples)


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
