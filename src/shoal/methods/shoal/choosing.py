"""Which moves a step of shoal's own search makes, of those that were scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from shoal.errors import TrainingError

if TYPE_CHECKING:
    from shoal.importance import Scores
    from shoal.search.lab import Lab
    from shoal.search.moves import Fitted, Move

_BATCHES = 20  # of a rehearsal


def rehearsed(
    lab: Lab,
    moves: Sequence[Move],
    fitted: Fitted,
    scores: Scores,
    saved: Mapping[str, float],
    *,
    tries: int,
    metric: str,
    samples: int | None,
) -> Scores:
    """Return the scores of the most promising moves of each kind once they are trained briefly.

    The cost is that above the network trained likewise without a move. One below its own standard
    error is not told from it, as in what is predicted.
    """
    by_kind: dict[str, list[Move]] = {}
    for move in sorted(moves, key=lambda move: scores[move.title]):
        by_kind.setdefault(move.kind, []).append(move)
    tried = [move for of_kind in by_kind.values() for move in of_kind[:tries]]
    against = lab.trial("no move", batches=_BATCHES)
    failed = against.failed
    if failed:
        raise TrainingError(failed)
    costs: dict[str, tuple[float, float]] = {}
    for done, move in enumerate(tried, start=1):
        trial = lab.trial(move.title, partial(fitted.make, move), batches=_BATCHES)
        failed = trial.failed or failed
        if not trial.failed:
            costs[move.title] = trial.cost_above(against, metric, samples)
        trial.forget()
        lab.listener.scored(done, len(tried))
    if not costs:
        raise TrainingError(failed)
    lab.scores = replace(
        scores,
        by_name={t: max(cost, error) / saved[t] for t, (cost, error) in costs.items()},
        standard_errors={t: error / saved[t] for t, (_, error) in costs.items()},
        settled=None,
        details={t: {**scores.details[t], "cost_rehearsed": costs[t][0]} for t in costs},
    )
    return lab.scores


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
