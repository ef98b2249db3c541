"""EASIER (Quétu et al. 2024): linearize the lowest-entropy rectifier, fine-tune, again.

Algorithm 1 of the paper prints its loop condition inverted; the search goes on while the drop is
within δ, and the last network within δ is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from shoal.errors import TrainingError
from shoal.importance import Observer, Scores, observe
from shoal.importance.criteria import Criterion, OnePass, criterion_for
from shoal.methods.listener import Listener
from shoal.methods.options import Search
from shoal.methods.registry import Proposal, Recall, methods
from shoal.network import Network
from shoal.records import Step
from shoal.surgery import LineMoments, linearize_

__all__ = ["POSITIONS", "Easier"]

POSITIONS = 8192  # of each batch, for the fit of a line


@methods.register("easier")
class Easier:
    """Scores all sites in one pass, which also fits the lines, and linearizes the lowest.

    Any criterion for sites may take the entropy's place.
    """

    unit: ClassVar[str] = "rectifiers"

    def __init__(self, search: Search) -> None:
        self.search = search
        self._criterion()

    def candidates(self, network: Network) -> list[str]:
        """Return the sites that still have their rectifier."""
        return [site.name for site in network.sites if site.linearized is None]

    def propose(
        self,
        network: Network,
        data: Iterable[Any],
        count: int,
        *,
        history: Sequence[Step],
        listener: Listener,
        recall: Recall,
        rehearse: Callable[[Network], object] | None,
    ) -> Proposal:
        """Choose the `count` sites with the lowest scores."""
        scores, moments = self._score(network, data, count, listener)
        _check_alive(scores, history)
        names = tuple(scores.lowest(min(count, len(scores))))
        lines = moments.lines() if moments is not None else None
        notes: tuple[str, ...] = ()
        if scores.settled is False and self.search.samples is not None:
            notes = ("the lowest score is not settled: score on more samples to be sure",)

        def apply(target: Network) -> None:
            linearize_(target, names, how=self.search.how, lines=lines)

        return Proposal("linearize", names, scores, apply, notes)

    def _criterion(self, wanted: int | None = None) -> Criterion:
        return criterion_for(self.search.criterion, "site", seed=self.search.seed, wanted=wanted)

    def _score(
        self, network: Network, data: Iterable[Any], count: int, listener: Listener
    ) -> tuple[Scores, LineMoments | None]:
        criterion = self._criterion(count)
        moments = LineMoments(positions=POSITIONS) if self.search.how == "line" else None
        samples = self.search.samples
        if isinstance(criterion, OnePass):
            both: list[Observer] = [criterion]
            if moments is not None:
                both.append(moments)
            observe(network, data, both, samples=samples, progress=listener.scored)
            return criterion.scores(), moments
        scores = criterion.score(network, data, samples=samples, progress=listener.scored)
        if moments is not None:
            observe(network, data, [moments], samples=samples)
        return scores, moments


def _check_alive(scores: Scores, history: Sequence[Step]) -> None:
    """Stop if every neuron of a site is always OFF now and was not when the search began."""
    first = next((step.scores for step in history if step.scores), {})
    for name, detail in scores.details.items():
        dead = detail.get("channels") and detail.get("always_off") == detail.get("channels")
        if dead and first.get(name, 0.0) > 0.0:
            raise TrainingError(
                f"layer '{name}' died: all its neurons are always OFF after fine-tuning; try a "
                "lower learning rate or fewer removals per step"
            )
