"""Criteria that look at no data: chance, and the order of the layers."""

from __future__ import annotations

import random
from dataclasses import dataclass

from typing_extensions import override

from shoal.importance.candidates import candidates
from shoal.importance.criterion import Criterion, PlaceOptions, register_criterion
from shoal.importance.scores import Scores
from shoal.network import Network
from shoal.options import option
from shoal.passes.batches import Data
from shoal.seeds import derive_seed

__all__ = ["Last", "Random"]


@register_criterion("random")
class Random(Criterion):
    """Scores by chance, uniformly in [0, 1): the baseline to report beside every criterion.

    The score depends on the seed and the name alone, so what is left keeps its order when others
    go.
    """

    asks = frozenset({"place", "seed"})

    @dataclass(frozen=True, kw_only=True)
    class Options(PlaceOptions):
        """What is scored, and the seed."""

        seed: int = option(0, "Another one gives another order.")

    options: Options

    @override
    def compute(self, network: Network, data: Data) -> Scores:
        names = [candidate.name for candidate in candidates(network, self.place)]
        seed = self.options.seed
        draws = {name: random.Random(derive_seed(seed, "random", name)).random() for name in names}
        return Scores(self.name, draws, 0)


@register_criterion("last")
class Last(Criterion):
    """Scores by how many candidates come later: the last one has 0 and goes first.

    For large language models, dropping the last blocks is hard to beat (Gromov et al. 2024).
    """

    asks = frozenset({"place"})
    Options = PlaceOptions

    @override
    def compute(self, network: Network, data: Data) -> Scores:
        names = [candidate.name for candidate in candidates(network, self.place)]
        return Scores(self.name, {n: float(len(names) - i) for i, n in enumerate(names, 1)}, 0)
