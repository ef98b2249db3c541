"""shoal's own search: linearize, collapse or drop, whichever costs least per millisecond saved.

LayerMerge (Kim et al. 2024) chooses layers to remove and to merge from tables of importance and of
measured latency. Here both are taken anew at each step, of the network as it has become: what
every move saves is measured, and what it costs is predicted by the rise of the loss where the move
is made and nothing else changes; the most promising ones are then trained briefly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from shoal import options
from shoal.errors import ConfigError
from shoal.methods.shoal.choosing import best_step, rehearsed
from shoal.options import at_least, between, one_of, option
from shoal.search.method import Method, Progress, register_method

if TYPE_CHECKING:
    from shoal.search.lab import Lab

__all__ = ["Shoal"]

_NONE = "no removal that is left was measured to save time"
_WHAT = {"linearize": "rectifier to linearize", "collapse": "stretch to collapse",
         "drop": "block to drop"}  # fmt: skip


@register_method("shoal")
class Shoal(Method):
    """Makes, at each step, the moves with the least predicted cost per measured saving.

    The criterion is "loss", the rise of the mean cross-entropy in nats, or "accuracy", the points
    of accuracy lost; both on training images with the move made and nothing trained.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """The options of shoal's own search."""

        criterion: str = option(
            "loss",
            "What a move costs: the rise of the mean 'loss' in nats, or the points of 'accuracy' "
            "that are lost, on training samples.",
            check=one_of("loss", "accuracy"),
        )
        how: str = option(
            "line",
            "What takes a rectifier's place: 'line', a line fitted to it for each channel, or "
            "'identity'.",
            check=one_of("line", "identity"),
        )
        moves: tuple[str, ...] = option(
            ("linearize", "collapse", "drop"),
            "What it may do.",
            check=one_of("linearize", "collapse", "drop"),
        )
        per_step: int = option(8, "Moves of a step at most.", check=at_least(1))
        step_saving: float = option(
            0.05,
            "Fine-tune as soon as the moves of a step were measured to save this share of the "
            "latency.",
            check=between(0, 1, ends="(]"),
        )
        tries: int = option(
            3,
            "How many of the most promising moves of each kind are fine-tuned briefly before the "
            "choice. 0 goes by what they cost untrained, which is quicker and favours what needs "
            "no training.",
            check=at_least(0),
        )
        samples: int | None = option(
            1000, "Compare moves on this many training samples.", check=at_least(1)
        )

        def __post_init__(self) -> None:
            """Raise `ConfigError` if there is no move to make."""
            super().__post_init__()
            if not self.moves:
                raise ConfigError("moves is empty: name one or more of linearize, collapse, drop")

    recipe: ClassVar[str] = "distill"

    @override
    def progress(self, lab: Lab) -> Progress:
        bounded = self.options.step_saving == 1.0  # else a step ends by what it saves
        per_step = self.options.per_step if bounded else None
        return replace(super().progress(lab), per_step=per_step)

    @override
    def nothing_to_remove(self, lab: Lab) -> str:
        if lab.find_moves(self.options.moves):
            return ""
        return f"the network has no {', no '.join(_WHAT[kind] for kind in self.options.moves)}"

    @override
    def step(self, lab: Lab) -> bool:
        """Make moves of one kind that do not touch one another.

        They are `per_step` at most, and no more than it takes to save the share of the latency
        that a step should, or what is missing to the target.
        """
        chosen = self.options
        moves = lab.find_moves(chosen.moves)
        if not moves:
            return lab.done()
        whole_ms, saved = lab.saved_ms(moves, chosen.how)
        moves = [move for move in moves if saved.get(move.title, 0.0) > 0.0]
        if not moves:
            return lab.done(_NONE)
        fitted = lab.fit_moves(moves, chosen.how, chosen.samples)
        moves = [move for move in moves if fitted.allows(move)]
        if not moves:
            return lab.done(_NONE)
        count = lab.at_most(chosen.per_step)
        enough_ms = whole_ms * self._wanted_share(lab)
        likely = math.ceil(enough_ms / median(saved[move.title] for move in moves))
        tries = chosen.tries if lab.can_rehearse else 0
        data = {"metric": chosen.criterion, "samples": chosen.samples}
        keep = tries or min(count, likely)
        scores = lab.score_moves(moves, fitted, saved, keep=keep, **data)
        moves = [move for move in moves if math.isfinite(scores[move.title])]
        if not moves:
            return lab.done("without any of what is left the network computes NaN")
        if tries:
            scores = rehearsed(lab, moves, fitted, scores, saved, tries=tries, **data)
            moves = [move for move in moves if move.title in scores]
        lab.make(best_step(moves, scores, saved, count, enough_ms), fitted)
        lab.train()
        return True

    def _wanted_share(self, lab: Lab) -> float:
        """Return the share of the network's latency that the next step should save."""
        target, share = lab.options.target_latency, float(self.options.step_saving)
        if target is None:
            return share
        missing = 1.0 - target / lab.latency_left
        return min(share, missing) if missing > 0.0 else share
