"""Score by several criteria with as few passes as they need, and combine what they say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from shoal.errors import ConfigError
from shoal.importance.criteria import ALL, Criterion, OnePass, criteria, criterion_for
from shoal.importance.gradients import Gradient, score_by_gradients
from shoal.importance.scores import Scores
from shoal.importance.without import Without, score_without
from shoal.network import Network
from shoal.passes.observe import observe

__all__ = ["Consensus", "score_several"]


def score_several(
    network: Network,
    loader: Iterable[Any],
    chosen: Sequence[Criterion],
    *,
    samples: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Scores]:
    """Score by several criteria: those of one pass share it, and others of one kind theirs.

    Those that leave out blocks run the network's variants once for all; those of gradients compute
    each gradient once.

    Args:
        network: the captured network.
        loader: the data, unshuffled and without augmentation; it is gone over repeatedly.
        chosen: fresh criteria; see `make_criterion`.
        samples: use this many samples only.
        progress: called with the batches done and their total, for each pass anew.

    Returns:
        The scores in the order of the criteria.
    """
    found: dict[int, Scores] = {}
    one_pass = [c for c in chosen if isinstance(c, OnePass)]
    if one_pass:
        observe(network, loader, one_pass, samples=samples, progress=progress)
        found |= {id(c): c.scores() for c in one_pass}
    for unit in ("block", "site"):
        without = [c for c in chosen if isinstance(c, Without) and c.unit == unit]
        if without:
            scores = score_without(network, loader, without, samples=samples, progress=progress)
            found |= {id(c): s for c, s in zip(without, scores, strict=True)}
    for statistics in ("running", "batch"):
        alike = [c for c in chosen if isinstance(c, Gradient) and c.statistics == statistics]
        if alike:
            scores = score_by_gradients(network, loader, alike, samples=samples, progress=progress)
            found |= {id(c): s for c, s in zip(alike, scores, strict=True)}
    for criterion in chosen:
        if id(criterion) not in found:
            assert not isinstance(criterion, OnePass)
            found[id(criterion)] = criterion.score(
                network, loader, samples=samples, progress=progress
            )
    return [found[id(criterion)] for criterion in chosen]


@criteria.register("consensus")
class Consensus:
    """Scores by the sum of ranks that several criteria give (after Duarte et al. 2024).

    The lowest score of a criterion has rank 0; equal ones share their mean rank. What a criterion
    does not score (a block without a rectifier, by its entropy) is left out.

    Args:
        criteria: names of criteria, or one text with commas or spaces between them; in
            "consensus?criteria=cka+lesion" a plus is a space, so that such a name can stand in a
            list with commas.
        unit: "block" or "site".
        seed: for those that draw random numbers.

    Raises:
        NameNotFoundError: there is no such criterion.
        ConfigError: fewer than two are given, or one scores something else than `unit`.
    """

    name = "consensus"

    def __init__(
        self,
        *,
        criteria: Sequence[str] | str = ("cka", "lesion"),
        unit: str = "block",
        seed: int = 0,
    ) -> None:
        names = re.split(r"[,\s]+", criteria) if isinstance(criteria, str) else list(criteria)
        names = [name.strip() for name in names if name.strip()]
        if len(names) < 2:
            raise ConfigError("a consensus needs two criteria or more, such as criteria=cka+lesion")
        self.unit = unit
        self.names = names
        self.members = [criterion_for(name, unit, seed=seed, wanted=ALL) for name in names]

    def score(
        self,
        network: Network,
        loader: Iterable[Any],
        *,
        samples: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Scores:
        """Score the candidates of `network` by all members."""
        every = score_several(network, loader, self.members, samples=samples, progress=progress)
        common = [name for name in every[0] if all(name in scores for scores in every)]
        ranks = [_ranks({name: scores[name] for name in common}) for scores in every]
        sums = {name: sum(rank[name] for rank in ranks) for name in common}
        details = {
            name: {own: scores[name] for own, scores in zip(self.names, every, strict=True)}
            for name in common
        }
        return Scores(self.name, sums, max(s.samples for s in every), details=details)


def _ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Return each value's place from 0; equal values share their mean place."""
    return {
        name: sum(other < value for other in values.values())
        + (sum(other == value for other in values.values()) - 1) / 2
        for name, value in values.items()
    }
