"""Choose how to cut a region into layers: the cut with the least cost, by dynamic programming.

Any run of units that composes exactly may become one layer; the best cut is found over all
boundaries (Kim et al. 2023), with measured costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from torch import fx

from shoal.merge.algebra import Inexact, in_a_row
from shoal.merge.conv_map import ConvMap
from shoal.merge.reasons import SUM_IS_FASTER
from shoal.merge.regions import Element
from shoal.merge.units import Segment, folded_units

__all__ = ["Prices", "best_cut", "cheapest"]

T = TypeVar("T")


@dataclass(frozen=True)
class Prices:
    """By what a cut is chosen.

    Attributes:
        of: the cost of a map on the tensor of a node, in milliseconds or any other unit.
        joins: whether layers may become one at all; else only scales and shifts are folded.
        most_work: composed layers with more than this times the work of their parts are not
            considered: they cannot pay, and measuring them takes long.
        margin: a merged layer must cost less than this times its parts; what is nearer to them is
            within the noise of a measurement.
        in_ms: whether costs are milliseconds, to be reported.
    """

    of: Callable[[ConvMap, fx.Node], float]
    joins: bool = True
    most_work: float = 4.0
    margin: float = 0.97
    in_ms: bool = True


def best_cut(chain: Sequence[Element], prices: Prices) -> list[Segment]:
    """Return the segments of a chain that cost least together."""
    units = folded_units(chain, partial(best_cut, prices=prices))
    return cheapest(len(units), lambda i, j: _join(units[i:j], prices))


def cheapest(n: int, piece: Callable[[int, int], tuple[float, T] | None]) -> list[T]:
    """Return the pieces from 0 to n that cost least together; of equals those with shorter ends.

    best[j] = min over i < j of best[i] + cost of the piece from i to j.

    `piece` gives the cost of the units i to j (excluded) as one piece, and the piece; None where
    they cannot be one. Each unit must be a piece by itself.
    """
    best: list[tuple[float, list[T]]] = [(0.0, [])]
    for j in range(1, n + 1):
        options = []
        for i in range(j - 1, -1, -1):
            last = piece(i, j)
            if last is not None:
                options.append((best[i][0] + last[0], [*best[i][1], last[1]]))
        best.append(min(options, key=lambda option: option[0]))
    return best[n][1]


def _join(units: Sequence[Segment], prices: Prices) -> tuple[float, Segment] | None:
    """Return the cost of these units as one segment, None if they cannot or need not be one."""
    if len(units) == 1:
        return _alone(units[0], prices)
    if not prices.joins or any(unit.map is None for unit in units):
        return None
    if not any(unit.layers for unit in units):
        return None  # slices and paddings only move data: a layer in their place costs more
    parts = [unit.map for unit in units if unit.map is not None]
    try:
        composed = in_a_row(parts)
    except Inexact:
        return None
    if _work(composed) > prices.most_work * sum(map(_work, parts)):
        return None
    price, apart = _price(composed, units, prices), sum(_alone(unit, prices)[0] for unit in units)
    layers = sum(unit.layers for unit in units)
    start, end = units[0].start, units[-1].end
    segment = Segment(start, end, composed, layers, True, cost=price, cost_apart=apart)
    return price / prices.margin, segment


def _alone(unit: Segment, prices: Prices) -> tuple[float, Segment]:
    """Return the cheaper form of a unit: one layer, or the sum of its branches."""
    parts = [part for branch in unit.branches for part in branch]
    apart = sum(_alone(part, prices)[0] for part in parts if part.map is not None or part.branches)
    if unit.map is None:
        return apart, unit
    if not unit.branches:
        return prices.of(unit.map, unit.start), unit
    reason = ""
    if prices.joins:
        together = _price(unit.map, [unit, *parts], prices) / prices.margin
        # the addition costs about what scaling and shifting the same tensor does
        apart += prices.of(ConvMap.identity(unit.map.channels_out, unit.map.spatial), unit.end)
        if together <= apart:
            price = together * prices.margin
            return together, replace(unit, branches=(), cost=price, cost_apart=apart)
        reason = SUM_IS_FASTER
    changed = any(part.changed for part in parts)
    return apart, replace(unit, map=None, changed=changed, reason=reason)


def _price(composed: ConvMap, units: Sequence[Segment], prices: Prices) -> float:
    """Return the cost of a composed map, at most that of a unit which does all its work and more.

    The map cannot cost more than such a unit; a measurement that says so comes from a busy machine.
    """
    more = [u for u in units if u.map is not None and composed.works_within(u.map)]
    known = [prices.of(unit.map, unit.start) for unit in more if unit.map is not None]
    return min([prices.of(composed, units[0].start), *known])


def _work(composed: ConvMap) -> float:
    """Return multiply-accumulates per output position, in proportion to the output's size."""
    return composed.weight.numel() / math.prod(composed.stride)
