"""shoal's own search: linearize, collapse or drop, whichever costs least per millisecond saved.

LayerMerge (Kim et al. 2024) chooses layers to remove and to merge from tables of importance and of
measured latency. Here both are taken anew at each step, of the network as it has become: what
every move saves is measured, and what it costs is predicted by the rise of the loss where the move
is made and nothing else changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any, ClassVar

from torch import Tensor

from shoal import options
from shoal.errors import ConfigError
from shoal.importance import Scores
from shoal.importance.collapse_loss import apply_layer
from shoal.importance.line_loss import computing_line, unchanged
from shoal.importance.metric import check_metric
from shoal.importance.replaced import Replacement, replacement_scores
from shoal.methods.easier import POSITIONS
from shoal.modes import device_of
from shoal.network import Network
from shoal.options import at_least, between, one_of, option
from shoal.passes.lines import FittedLine
from shoal.passes.observe import observe
from shoal.search.legacy import Proposal, Search, Situation
from shoal.search.listener import Listener
from shoal.search.method import register_method
from shoal.search.moves import Move, find_moves, saved_ms
from shoal.search.records import Step
from shoal.search.rehearsal import rehearsed_costs
from shoal.surgery import LineMoments, drop_, linearize_
from shoal.surgery.collapse import collapsed_layers, put_collapsed_
from shoal.surgery.fit_conv import FittedLayer
from shoal.surgery.fit_stretches import fit_stretches

__all__ = ["Shoal"]


@register_method("shoal")
class Shoal:
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
            1000,
            "Compare moves on this many training samples.",
            check=at_least(1),
        )

        def __post_init__(self) -> None:
            """Raise `ConfigError` if there is no move to make."""
            super().__post_init__()
            if not self.moves:
                raise ConfigError("moves is empty: name one or more of linearize, collapse, drop")

    unit: ClassVar[str] = "rectifiers"
    reads: ClassVar[frozenset[str]] = frozenset({"how", "moves", "step_saving", "tries"})
    defaults: ClassVar[Mapping[str, Any]] = {
        "criterion": "loss",
        "samples": 1000,
        "per_step": 8,
        "step_saving": 0.05,
        "tries": 3,
    }
    recipe: ClassVar[str] = "distill"

    def __init__(self, search: Search) -> None:
        self.search = search
        try:
            check_metric(search.criterion)
        except ConfigError:
            raise ConfigError(
                f"criterion is '{search.criterion}': the method 'shoal' predicts what a move costs "
                "by 'loss' or 'accuracy'"
            ) from None

    def candidates(self, network: Network) -> list[str]:
        """Return the titles of the moves that are left."""
        return [move.title for move in find_moves(network, self.search.moves)]

    def nothing_to_remove(self, network: Network) -> str:
        """Return why there is no candidate in a network that was just captured."""
        what = {
            "linearize": "rectifier to linearize",
            "collapse": "stretch to collapse",
            "drop": "block to drop",
        }
        return f"the network has no {', no '.join(what[kind] for kind in self.search.moves)}"

    def propose(
        self, network: Network, data: Iterable[Any], count: int, situation: Situation
    ) -> Proposal | None:
        """Choose moves of one kind that do not touch one another; None if none saves time.

        They are `count` at most, and no more than it takes to save the share of the latency that
        a step should, or what is missing to the target.

        Raises:
            TrainingError: the network computes NaN.
        """
        moves = find_moves(network, self.search.moves)
        inputs = network.example_inputs(self.search.latency_batch)
        whole_ms, saved = situation.recall(
            "saved_ms",
            lambda: saved_ms(
                network, moves, inputs[1] or inputs[0], self.search.how, self.search.runtime
            ),
        )
        moves = [move for move in moves if saved.get(move.title, 0.0) > 0.0]
        if not moves:
            return None
        fitted = _Fitted.of(network, moves, data, self.search)
        moves = [move for move in moves if move.stretch is None or move.name in fitted.layers]
        if not moves:
            return None
        enough_ms = whole_ms * self._wanted_share(situation.history[-1])
        likely = math.ceil(enough_ms / median(saved[move.title] for move in moves))
        rehearse = situation.rehearse
        tries = self.search.tries if rehearse is not None else 0
        keep = tries or min(count, likely)
        scores = self._score(network, moves, saved, fitted, data, keep, situation.listener)
        if rehearse is not None and tries:
            tried = self._promising(moves, scores)
            costs = situation.recall(
                "rehearsed",
                lambda: rehearsed_costs(
                    network,
                    tried,
                    fitted.make,
                    rehearse,
                    data,
                    samples=self.search.samples,
                    metric=self.search.criterion,
                    progress=situation.listener.scored,
                ),
                together=True,
            )
            scores = _rehearsed(scores, costs, saved)
        known = [move for move in moves if move.title in scores]
        chosen = _best_step(known, scores, saved, count, enough_ms)

        def apply(target: Network) -> None:
            for move in chosen:
                fitted.make(move, target)

        return Proposal(chosen[0].kind, tuple(move.name for move in chosen), scores, apply)

    def _promising(self, moves: Sequence[Move], scores: Scores) -> list[Move]:
        """Return the moves of each kind that are the best by their untrained cost."""
        by_kind: dict[str, list[Move]] = {}
        for move in sorted(moves, key=lambda move: scores[move.title]):
            of_kind = by_kind.setdefault(move.kind, [])
            if len(of_kind) < self.search.tries:
                of_kind.append(move)
        return [move for of_kind in by_kind.values() for move in of_kind]

    def _wanted_share(self, last: Step) -> float:
        """Return the share of the network's latency that the next step should save."""
        target = self.search.target_latency
        if target is None:
            return self.search.step_saving
        missing = 1.0 - target * last.latency_ratio  # the network's latency is dense's over that
        return min(self.search.step_saving, missing) if missing > 0.0 else self.search.step_saving

    def _score(
        self,
        network: Network,
        moves: Sequence[Move],
        saved: Mapping[str, float],
        fitted: _Fitted,
        data: Iterable[Any],
        keep: int,
        listener: Listener,
    ) -> Scores:
        """Score moves by predicted cost per millisecond saved, the best `keep` of each kind well.

        A cost below its own standard error (as an estimate for other data) cannot be told from it:
        the error stands for it, so that among moves that cost nothing the saving decides.
        """
        found = replacement_scores(
            "shoal",
            network,
            [
                Replacement(
                    move.title,
                    move.node,
                    move.source,
                    fitted.compute(move),
                    weight=1.0 / saved[move.title],
                    group=move.kind,
                )
                for move in moves
            ],
            data,
            metric=self.search.criterion,
            keep=keep,
            samples=self.search.samples,
            progress=listener.scored,
        )
        errors = {title: found.details[title]["cost_standard_error"] for title in found}
        costs = {title: max(cost, errors[title]) for title, cost in found.items()}
        details = {
            m.title: {
                **found.details[m.title],
                "kind": m.kind,
                "cost": found[m.title],
                "saved_ms": saved[m.title],
            }
            for m in moves
        }
        return replace(
            found,
            by_name={title: cost / saved[title] for title, cost in costs.items()},
            standard_errors={t: e / saved[t] for t, e in found.standard_errors.items()},
            settled=None,
            details=details,
        )


@dataclass(frozen=True)
class _Fitted:
    """What the moves put in: a line for each site, a layer for each stretch with data enough."""

    lines: Mapping[str, FittedLine]
    layers: Mapping[str, FittedLayer]
    network: Network
    how: str

    @classmethod
    def of(
        cls, network: Network, moves: Sequence[Move], data: Iterable[Any], search: Search
    ) -> _Fitted:
        lines: Mapping[str, FittedLine] = {}
        sites = [move.name for move in moves if move.kind == "linearize"]
        if sites:
            moments = LineMoments(sites, positions=POSITIONS)
            observe(network, data, [moments], samples=search.samples)
            lines = moments.lines()
        stretches = [move.stretch for move in moves if move.stretch is not None]
        layers = fit_stretches(network, stretches, data, samples=search.samples, leave_out=True)
        return cls(lines, layers, network, search.how)

    def compute(self, move: Move) -> Callable[[Tensor], Tensor]:
        """Return what gives the value of the move's node from that of its source."""
        if move.kind == "drop" or (move.kind == "linearize" and self.how == "identity"):
            return unchanged
        if move.kind == "linearize":
            site = next(site for site in self.network.sites if site.name == move.name)
            return computing_line(self.lines[move.name], site, device_of(self.network))
        like = next(p for p in self.network.parameters() if p.is_floating_point())
        return partial(apply_layer, self.layers[move.name].layer(like))

    def make(self, move: Move, target: Network) -> None:
        """Make the move on a network like the one that was scored."""
        if move.kind == "drop":
            drop_(target, move.name)
        elif move.kind == "linearize":
            linearize_(target, move.name, how=self.how, lines=self.lines)
        else:
            stretch = target.stretch(move.name)
            layers = collapsed_layers(target, stretch, self.layers[move.name])
            put_collapsed_(target, stretch, *layers)


def _rehearsed(
    scores: Scores, costs: Mapping[str, Sequence[float]], saved: Mapping[str, float]
) -> Scores:
    """Return the scores of the moves that were rehearsed, by what they cost then.

    As in `Shoal._score`, a cost below its own standard error is not told from it.
    """
    known = {
        title: {**scores.details[title], "cost_rehearsed": cost}
        for title, (cost, _) in costs.items()
    }
    return replace(
        scores,
        by_name={t: max(cost, error) / saved[t] for t, (cost, error) in costs.items()},
        standard_errors={t: error / saved[t] for t, (_, error) in costs.items()},
        settled=None,
        details=known,
    )


def _best_step(
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
