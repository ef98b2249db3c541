"""EASIER (Quétu et al. 2024): linearize the lowest-entropy rectifier, fine-tune, again.

Algorithm 1 of the paper prints its loop condition inverted; the search goes on while the drop is
within δ, and the last network within δ is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from shoal.errors import TrainingError
from shoal.options import one_of, option
from shoal.search.method import (
    Method,
    Progress,
    ScoreOptions,
    none_worthy,
    register_method,
)

if TYPE_CHECKING:
    from shoal.importance import Scores
    from shoal.search.lab import Lab


@register_method("easier")
class Easier(Method):
    """Scores all sites in one pass, which also fits the lines, and linearizes the lowest.

    Any criterion for sites may take the entropy's place.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(ScoreOptions):
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

    scores: ClassVar[str] = "site"

    @override
    def progress(self, lab: Lab) -> Progress:
        return replace(super().progress(lab), per_step=self.options.per_step)

    @override
    def nothing_to_remove(self, lab: Lab) -> str:
        if lab.network.sites_left:
            return ""
        return "the network has no rectifier to linearize: choose method layer_pruning or shoal"

    @override
    def step(self, lab: Lab) -> bool:
        chosen = self.options
        if lab.network.sites_left == 0:
            return lab.done()
        count = lab.at_most(chosen.per_step)
        scores = lab.score(
            chosen.criterion,
            "site",
            wanted=count,
            how=chosen.how,
            samples=chosen.samples,
            per_latency=chosen.per_latency,
            fit_lines=chosen.how == "line",
        )
        _check_alive(scores, lab)
        names = scores.worth_removing()[:count]
        if not names:
            return lab.done(none_worthy(chosen.per_latency))
        lab.linearize(names, chosen.how)
        self.train(lab)
        return True

    def train(self, lab: Lab) -> None:
        """Train the network of a step."""
        lab.train()


def _check_alive(scores: Scores, lab: Lab) -> None:
    """Stop if a site that worked when the search began is always OFF now, and the signal with it.

    With a skip around it the network lives on, and this rectifier is the first to go.
    """
    first = next((step.scores for step in lab.history if step.scores), {})
    for name, detail in scores.details.items():
        dead = detail.get("channels") and detail.get("always_off") == detail.get("channels")
        if not dead or first.get(name, 0.0) <= 0.0:
            continue
        if lab.once("collapsed", lab.predicts_one_class, together=True):
            raise TrainingError(
                f"layer '{name}' died: all its neurons are always OFF after fine-tuning; try a "
                "lower learning rate or fewer removals per step"
            )
