"""Which moves a step of shoal's own search makes, of those that were scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.search.moves import Move

__all__ = ["best_step", "promising"]


def promising(moves: Sequence[Move], scores: Mapping[str, float], tries: int) -> list[Move]:
    """Return the moves of each kind that are the best by their untrained cost."""
    by_kind: dict[str, list[Move]] = {}
    for move in sorted(moves, key=lambda move: scores[move.title]):
        of_kind = by_kind.setdefault(move.kind, [])
        if len(of_kind) < tries:
            of_kind.append(move)
    return [move for of_kind in by_kind.values() for move in of_kind]


def best_step(
    moves: Sequence[Move],
    scores: Mapping[str, float],
    saved: Mapping[str, float],
    count: int,
    enough_ms: float,
) -> list[Move]:
    """Return the moves of one kind that cost least per millisecond saved.

    Each step is fine-tuned, however little it saves. So a kind whose moves save less than half of
    what another kind's do (up to the share of a step) is not chosen for being cheap.
    """
    # Among equals the one that saves most goes first.
    order = sorted(moves, key=lambda move: (scores[move.title], -saved[move.title]))
    kinds = dict.fromkeys(move.kind for move in order)
    steps = [
        _apart([move for move in order if move.kind == kind], count, saved, enough_ms)
        for kind in kinds
    ]
    gains = [sum(saved[move.title] for move in step) for step in steps]
    least = 0.5 * min(enough_ms, max(gains))

    def cost_per_ms(step: Sequence[Move], gain: float) -> float:
        return sum(scores[move.title] * saved[move.title] for move in step) / gain

    worthy = [(cost_per_ms(s, g), s) for s, g in zip(steps, gains, strict=True) if g >= least]
    return min(worthy, key=lambda pair: pair[0])[1]


def _apart(
    moves: Sequence[Move], count: int, saved: Mapping[str, float], enough_ms: float
) -> list[Move]:
    """Return the first moves that have no node in common.

    They end with the one that brings the sum of what they save to `enough_ms`, or at `count`.
    """
    chosen: list[Move] = []
    for move in moves:
        if len(chosen) == count or sum(saved[c.title] for c in chosen) >= enough_ms:
            break
        if all(move.nodes.isdisjoint(other.nodes) for other in chosen):
            chosen.append(move)
    return chosen
