"""What moves put in: fitted lines and layers, and the cost of moves that are made with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from shoal.importance import Scores
from shoal.importance.collapse_loss import apply_layer
from shoal.importance.line_loss import computing_line, unchanged
from shoal.importance.replaced import Replacement, TrialOptions, replacement_scores
from shoal.modes import device_of
from shoal.network import Network
from shoal.passes.batches import Data
from shoal.passes.lines import FittedLine, LineMoments
from shoal.passes.observe import observe
from shoal.search.moves import Move
from shoal.surgery import drop_, linearize_
from shoal.surgery.collapse import collapsed_layers, put_collapsed_
from shoal.surgery.fit_conv import FittedLayer
from shoal.surgery.fit_stretches import fit_stretches

__all__ = ["POSITIONS", "Fitted", "fit_moves", "predicted_costs"]

POSITIONS = 8192  # of each batch, for the fit of a line


@dataclass(frozen=True)
class Fitted:
    """What moves put in: a line for each site, a layer for each stretch with data enough."""

    network: Network
    how: str
    lines: Mapping[str, FittedLine]
    layers: Mapping[str, FittedLayer]

    def allows(self, move: Move) -> bool:
        """Whether there were data enough to fit what the move puts in."""
        return move.stretch is None or move.name in self.layers

    def make(self, move: Move, target: Network) -> None:
        """Make the move on a network like the one that was fitted."""
        if move.kind == "drop":
            drop_(target, move.name)
        elif move.kind == "linearize":
            linearize_(target, move.name, how=self.how, lines=self.lines)
        else:
            stretch = target.stretch(move.name)
            layers = collapsed_layers(target, stretch, self.layers[move.name])
            put_collapsed_(target, stretch, *layers)

    def compute(self, move: Move) -> Callable[[Tensor], Tensor]:
        """Return what gives the value of the move's node from that of its source."""
        if move.kind == "drop" or (move.kind == "linearize" and self.how == "identity"):
            return unchanged
        if move.kind == "linearize":
            site = self.network.site(move.name)
            return computing_line(self.lines[move.name], site, device_of(self.network))
        like = next(p for p in self.network.parameters() if p.is_floating_point())
        return partial(apply_layer, self.layers[move.name].layer(like))


def fit_moves(
    network: Network, moves: Sequence[Move], data: Iterable[Any], *, how: str, samples: int | None
) -> Fitted:
    """Fit lines and layers to data; stretches with too few samples are left out."""
    lines: Mapping[str, FittedLine] = {}
    sites = [move.name for move in moves if move.kind == "linearize"]
    if sites:
        moments = LineMoments(sites, positions=POSITIONS)
        observe(network, data, [moments], samples=samples)
        lines = moments.lines()
    stretches = [move.stretch for move in moves if move.stretch is not None]
    layers = fit_stretches(network, stretches, data, samples=samples, leave_out=True)
    return Fitted(network, how, lines, layers)


def predicted_costs(
    fitted: Fitted,
    moves: Sequence[Move],
    saved: Mapping[str, float],
    data: Iterable[Any],
    *,
    metric: str,
    keep: int,
    samples: int | None,
    progress: Callable[[int, int], None] | None,
) -> Scores:
    """Score moves by predicted cost per millisecond saved, the best `keep` of each kind well.

    A move's cost is what the network loses on data where it is made and nothing is trained. A cost
    below its own standard error (as an estimate for other data) cannot be told from it: the error
    stands for it, so that among moves that cost nothing the saving decides.
    """
    candidates = [
        Replacement(
            move.title,
            move.node,
            move.source,
            fitted.compute(move),
            weight=1.0 / saved[move.title],
            group=move.kind,
        )
        for move in moves
    ]
    how = TrialOptions(metric=metric, keep=keep)
    found = replacement_scores(
        "shoal", fitted.network, candidates, Data(data, samples, progress), how
    )
    details = {
        move.title: {
            **found.details[move.title],
            "kind": move.kind,
            "cost": found[move.title],
            "saved_ms": saved[move.title],
        }
        for move in moves
    }
    costs = {t: max(cost, details[t]["cost_standard_error"]) for t, cost in found.items()}
    return replace(
        found,
        by_name={title: cost / saved[title] for title, cost in costs.items()},
        standard_errors={t: e / saved[t] for t, e in found.standard_errors.items()},
        settled=None,
        details=details,
    )
