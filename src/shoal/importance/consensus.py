"""Consensus: several criteria vote by their ranks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from shoal.errors import ConfigError
from shoal.importance.criteria import ALL, criterion_for, score_several
from shoal.importance.criterion import Criterion, PlaceOptions, register_criterion
from shoal.importance.scores import Scores
from shoal.network import Network
from shoal.options import option
from shoal.passes.batches import Data

__all__ = ["Consensus"]


@register_criterion("consensus")
class Consensus(Criterion):
    """Scores by the sum of ranks that several criteria give (after Duarte et al. 2024).

    The lowest score of a criterion has rank 0; equal ones share their mean rank. What a criterion
    does not score (a block without a rectifier, by its entropy) is left out.

    Args:
        criteria: names of criteria, as a sequence or as one text with plus signs, commas or
            spaces between them.
        **options: see `Options`.

    Raises:
        NameNotFoundError: there is no such criterion.
        ConfigError: fewer than two are given, or one scores other places.
    """

    asks = frozenset({"place", "seed"})

    @dataclass(frozen=True, kw_only=True)
    class Options(PlaceOptions):
        """Which criteria vote, and on what."""

        criteria: str = option("cka+lesion", "The criteria that vote, with a plus between them.")
        seed: int = option(0, "For criteria that draw random numbers.")

    options: Options

    def __init__(self, *, criteria: Sequence[str] | str | None = None, **options: Any) -> None:
        if criteria is not None:
            options["criteria"] = criteria if isinstance(criteria, str) else "+".join(criteria)
        super().__init__(**options)
        self.names = [name for name in re.split(r"[+,\s]+", self.options.criteria) if name]
        if len(self.names) < 2:
            raise ConfigError("a consensus needs two criteria or more, such as criteria=cka+lesion")
        self.members = [
            criterion_for(name, self.place, seed=self.options.seed, wanted=ALL)
            for name in self.names
        ]

    @override
    def compute(self, network: Network, data: Data) -> Scores:
        every = score_several(
            network, data.loader, self.members, samples=data.samples, progress=data.progress
        )
        common = [name for name in every[0] if all(name in scores for scores in every)]
        ranks = [_ranks({name: scores[name] for name in common}) for scores in every]
        sums = {name: sum(rank[name] for rank in ranks) for name in common}
        details = {
            name: {own: scores[name] for own, scores in zip(self.names, every, strict=True)}
            for name in common
        }
        return Scores(self.name, sums, max(s.samples for s in every), details=details)


def _ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Return each value's rank from 0; equal values share their mean rank."""
    return {
        name: sum(other < value for other in values.values())
        + (sum(other == value for other in values.values()) - 1) / 2
        for name, value in values.items()
    }
