"""How a method scores all candidates of one kind: by a criterion, and by latency saved if asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from shoal.importance import Criterion, Scores, criterion_for, per_latency, score_by
from shoal.importance.criteria import ALL
from shoal.network import Network
from shoal.passes.observe import Observer
from shoal.search.legacy import Search, Situation
from shoal.search.moves import find_moves, saved_ms

__all__ = ["chosen_criterion", "score_candidates", "unsettled_note", "worth_removing"]

_KINDS = {"site": "linearize", "block": "drop"}  # the move that removes a unit


def chosen_criterion(search: Search, unit: str, wanted: int) -> Criterion:
    """Return a fresh criterion as the options of a search ask for it.

    Args:
        search: the options.
        unit: "site" or "block".
        wanted: how many of the lowest will be taken; `ALL` where any may be.
    """
    if search.per_latency:  # any may turn out to be the cheapest
        wanted = ALL
    return criterion_for(search.criterion, unit, seed=search.seed, wanted=wanted, how=search.how)


def score_candidates(
    criterion: Criterion,
    network: Network,
    data: Iterable[Any],
    search: Search,
    situation: Situation,
    beside: Sequence[Observer] = (),
) -> Scores:
    """Score what a criterion scores; lowest goes first.

    Args:
        criterion: a fresh one.
        network: as it is now.
        data: training batches.
        search: the options.
        situation: where the search stands.
        beside: what else is to see the data, in the same pass where the criterion needs just one.

    Raises:
        TrainingError: the network computes NaN.
    """
    samples, progress = search.samples, situation.listener.scored
    scores = score_by(criterion, network, data, samples=samples, progress=progress, beside=beside)
    if not search.per_latency:
        return scores
    kind = _KINDS[criterion.place]
    return per_latency(scores, situation.recall("saved_ms", lambda: _saved(network, kind, search)))


def _saved(network: Network, kind: str, search: Search) -> dict[str, float]:
    """Return the milliseconds that each removal saves, by the name of its site or block."""
    moves = find_moves(network, [kind])
    args, kwargs = network.example_inputs(search.latency_batch)
    _, saved = saved_ms(network, moves, kwargs or args, search.how, search.runtime)
    return {move.name: saved[move.title] for move in moves}


def worth_removing(scores: Scores) -> list[str]:
    """Return all names, lowest first, without those whose removal saves no latency."""
    return [name for name in scores.lowest(len(scores)) if math.isfinite(scores[name])]


def unsettled_note(scores: Scores, search: Search) -> tuple[str, ...]:
    """Return what to say where a sample was too small to tell the lowest from the next."""
    if scores.settled is not False or search.samples is None:
        return ()
    return ("the lowest score is not settled: score on more samples to be sure",)
