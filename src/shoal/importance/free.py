"""Criteria that look at no data: chance, and the order of the layers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from shoal.importance.candidates import candidates, check_unit
from shoal.importance.criteria import criteria
from shoal.importance.scores import Scores
from shoal.network import Network
from shoal.seeds import derive_seed

__all__ = ["Last", "Random"]


@criteria.register("random")
class Random:
    """Scores by chance, uniformly in [0, 1): the baseline to report beside every criterion.

    The score depends on the seed and the name alone, so what is left keeps its order when others
    go.

    Args:
        seed: another one gives another order.
        unit: "block" or "site".

    Raises:
        ConfigError: there is no such unit.
    """

    name = "random"

    def __init__(self, *, seed: int = 0, unit: str = "block") -> None:
        check_unit(unit)
        self.seed = seed
        self.unit = unit

    def score(
        self,
        network: Network,
        loader: Iterable[Any] = (),
        *,
        samples: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Scores:
        """Score the candidates; the data are not touched."""
        names = [candidate.name for candidate in candidates(network, self.unit)]
        draws = {n: random.Random(derive_seed(self.seed, "random", n)).random() for n in names}
        return Scores(self.name, draws, 0)


@criteria.register("last")
class Last:
    """Scores by how many candidates come later: the last one has 0 and goes first.

    For large language models, dropping the last blocks is hard to beat (Gromov et al. 2024).

    Args:
        unit: "block" or "site".

    Raises:
        ConfigError: there is no such unit.
    """

    name = "last"

    def __init__(self, *, unit: str = "block") -> None:
        check_unit(unit)
        self.unit = unit

    def score(
        self,
        network: Network,
        loader: Iterable[Any] = (),
        *,
        samples: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Scores:
        """Score the candidates; the data are not touched."""
        names = [candidate.name for candidate in candidates(network, self.unit)]
        return Scores(self.name, {n: float(len(names) - i) for i, n in enumerate(names, 1)}, 0)
