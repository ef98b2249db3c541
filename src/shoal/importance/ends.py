"""Criteria that compare what goes into a block with what comes out, in one pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from shoal.distributed import sum_across
from shoal.importance.candidates import block_candidates
from shoal.importance.criterion import OnePass, Scores
from shoal.network import Network, Site
from shoal.network.blocks import Block
from shoal.network.runner import Tap, listen


class BetweenEnds(OnePass):
    """Scores a block by the mean of figures of both its ends.

    What goes in comes by the shortcut. Both ends are taken behind the rectifier that follows the
    addition, where one does: what goes in comes out of it so once the block is dropped.
    """

    _network: Network  # the one that is looked at

    @abstractmethod
    def of_ends(self, block: Block, x: Tensor, y: Tensor) -> tuple[float, int]:
        """Return the sum of a batch's figures and their number."""

    @override
    def attach(self, network: Network) -> Sequence[RemovableHandle]:
        self._network, blocks = network, block_candidates(network)
        # By block, [2]: the figures' sum and their number.
        self._sums = {b.name: torch.zeros(2, dtype=torch.float64) for b in blocks}
        return [listen(network, [self._tap(network, block) for block in blocks])]

    def _tap(self, network: Network, block: Block) -> Tap:
        site = following_rectifier(network, block.addition)

        def add(x: Tensor, y: Tensor) -> None:
            if site is not None:
                # Not a call of the module: others may listen to its calls.
                x = network.get_submodule(site.name).forward(x)
            figures = self.of_ends(block, x, y)
            self._sums[block.name] += torch.tensor(figures, dtype=torch.float64)

        end = block.addition if site is None else site.node
        return Tap(end, (block.shortcut, end), add)

    def channels(self, block: Block) -> int:
        """Return the dimension of channels or features of what comes out of a block."""
        return self._network.view.channel_dim(block.addition)

    @override
    def finish(self, samples: int, population: int | None) -> None:
        self._samples = samples
        for sums in self._sums.values():
            sum_across(sums)

    @override
    def scores(self) -> Scores:
        means = {name: float(total / count) for name, (total, count) in self._sums.items()}
        return Scores(self.name, means, self._samples)


def following_rectifier(network: Network, addition: fx.Node) -> Site | None:
    """Return the site whose rectifier, still there, is all that takes the value of a node."""
    sites = {site.node: site for site in network.sites if site.linearized is None}
    return sites.get(next(iter(addition.users))) if len(addition.users) == 1 else None
