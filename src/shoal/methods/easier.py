"""EASIER (Quétu et al. 2024): linearize the lowest-entropy rectifier, fine-tune, again.

Algorithm 1 of the paper prints its loop condition inverted; the search goes on while the drop is
within δ, and the last network within δ is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from shoal import options
from shoal.errors import TrainingError
from shoal.importance import Scores
from shoal.network import Network
from shoal.options import at_least, one_of, option
from shoal.search.legacy import Proposal, Search, Situation
from shoal.search.method import register_method
from shoal.search.records import Step
from shoal.search.scoring import chosen_criterion, score_candidates, unsettled_note, worth_removing
from shoal.surgery import LineMoments, linearize_

__all__ = ["POSITIONS", "Easier"]

POSITIONS = 8192  # of each batch, for the fit of a line


@register_method("easier")
class Easier:
    """Scores all sites in one pass, which also fits the lines, and linearizes the lowest.

    Any criterion for sites may take the entropy's place.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """EASIER's own options."""

        criterion: str = option(
            "entropy",
            "What decides which rectifier goes: the one with the lowest score does. 'entropy', "
            "'line_loss', or any other criterion of sites.",
        )
        how: str = option(
            "line",
            "What takes a rectifier's place: 'line', a line fitted to it for each channel, or "
            "'identity', as the paper has it, which costs more accuracy.",
            check=one_of("line", "identity"),
        )
        per_step: int = option(
            1,
            "Rectifiers to remove before each fine-tuning. More is quicker and coarser.",
            check=at_least(1),
        )
        samples: int | None = option(
            None,
            "Score on this many training samples only. Quicker on large data; a note says when the "
            "choice is then not certain.",
            check=at_least(1),
            default_text="all",
        )
        per_latency: bool = option(
            False,
            "Divide importance by the milliseconds that the removal was measured to save, so that "
            "what is slow goes sooner.",
        )

    unit: ClassVar[str] = "rectifiers"
    reads: ClassVar[frozenset[str]] = frozenset({"how", "per_latency"})

    def __init__(self, search: Search) -> None:
        self.search = search
        chosen_criterion(search, "site", wanted=1)  # raises for one that makes no sense

    def candidates(self, network: Network) -> list[str]:
        """Return the sites that still have their rectifier."""
        return [site.name for site in network.sites if site.linearized is None]

    def nothing_to_remove(self, network: Network) -> str:
        """Return why there is no candidate in a network that was just captured."""
        return "the network has no rectifier to linearize: choose --method layer_pruning or shoal"

    def propose(
        self, network: Network, data: Iterable[Any], count: int, situation: Situation
    ) -> Proposal | None:
        """Choose the `count` sites with the lowest scores; None where none is left to save time."""
        criterion = chosen_criterion(self.search, "site", wanted=count)
        moments = LineMoments(positions=POSITIONS) if self.search.how == "line" else None
        beside = [] if moments is None else [moments]
        scores = score_candidates(criterion, network, data, self.search, situation, beside)
        _check_alive(scores, situation.history)
        names = tuple(worth_removing(scores)[:count])
        if not names:
            return None
        lines = moments.lines() if moments is not None else None

        def apply(target: Network) -> None:
            linearize_(target, names, how=self.search.how, lines=lines)

        return Proposal("linearize", names, scores, apply, unsettled_note(scores, self.search))


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
