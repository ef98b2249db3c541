"""Choose how to cut a region into layers: the cut with the least cost, by dynamic programming.

A chain's elements are first folded: scales and shifts go into the layer before them, or after
them, where that is exact. What is left are units. Any run of units that composes exactly may become
one layer; the best cut is found over all boundaries (Kim et al. 2023), with measured costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import fx

from shoal.merge.algebra import ConvMap, Inexact
from shoal.merge.linear_ops import tensor_shape
from shoal.merge.regions import Element, Layer, Sum

__all__ = ["Prices", "Segment", "best_cut"]


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
    """

    of: Callable[[ConvMap, fx.Node], float]
    joins: bool = True
    most_work: float = 4.0
    margin: float = 0.97


@dataclass(frozen=True)
class Segment:
    """A run of elements that becomes one layer, or stays as it is.

    Attributes:
        start: the tensor it reads.
        end: the tensor it gives.
        map: what it computes, composed; None where it stays a sum of branches.
        layers: how many weighted layers or sums it replaces.
        changed: whether anything is different from what is there.
        branches: for a sum that stays, the cuts of its branches.
        reason: why it was not merged with its neighbours, or into one layer.
        cost: what the one layer costs; None where nothing was joined.
        cost_apart: what its parts cost, scales and shifts folded.
    """

    start: fx.Node
    end: fx.Node
    map: ConvMap | None
    layers: int
    changed: bool
    branches: tuple[tuple[Segment, ...], ...] = ()
    reason: str = ""
    cost: float | None = None
    cost_apart: float | None = None


def best_cut(chain: Sequence[Element], prices: Prices) -> list[Segment]:
    """Return the segments of a chain that cost least together."""
    units = _fold(_units(chain, prices))
    n = len(units)
    best: list[tuple[float, list[Segment]]] = [(0.0, [])]
    for j in range(1, n + 1):
        options = []
        for i in range(j - 1, -1, -1):
            found = _join(units[i:j], prices)
            if found is None:
                continue
            price, segment = found
            options.append((best[i][0] + price, [*best[i][1], segment]))
        best.append(min(options, key=lambda option: option[0]))
    return _with_reasons(best[n][1], prices.joins)


# ---------------------------------------------------------------------- units


def _units(chain: Sequence[Element], prices: Prices) -> list[Segment]:
    units: list[Segment] = []
    flat: tuple[int, ...] | None = None  # spatial size at the flattening, until a layer used it
    position = 0
    while position < len(chain):
        element = chain[position]
        position += 1
        if isinstance(element, Sum):
            unit = _sum_unit(element, prices)
            units.append(unit if flat is None else _spread(unit, flat))
            continue
        if element.make is None:
            taken = _flattened(chain, position - 1)
            if taken is None:
                units.append(Segment(element.source, element.node, None, 0, False))
                continue
            segment, position = taken
            units.append(segment)
            flat = (1,) * (segment.map.spatial if segment.map is not None else 0)
            continue
        found = element.make()
        if flat is not None:
            found = _as_conv(found, flat)
        units.append(Segment(element.source, element.node, found, int(element.weighted), False))
    return units


def _as_conv(found: ConvMap, spatial: tuple[int, ...]) -> ConvMap:
    """Return a linear layer as a convolution over a single position."""
    ones = (1,) * len(spatial)
    weight = found.weight.reshape(*found.weight.shape, *ones)
    zeros = (0,) * len(spatial)
    return ConvMap(weight, found.bias, ones, zeros, ones, found.groups)


def _spread(unit: Segment, spatial: tuple[int, ...]) -> Segment:
    """Return a unit of linear layers, and all in its branches, as over a single position."""
    return replace(
        unit,
        map=None if unit.map is None else _as_conv(unit.map, spatial),
        branches=tuple(tuple(_spread(s, spatial) for s in branch) for branch in unit.branches),
    )


def _flattened(chain: Sequence[Element], position: int) -> tuple[Segment, int] | None:
    """Return flattening and what follows up to the first linear layer as one convolution.

    It covers the whole image, so its output has a single position.
    """
    flattening = chain[position]
    assert isinstance(flattening, Layer)
    channels, *size = (n for n in tensor_shape(flattening.source)[1:] if n is not None)
    composed: ConvMap | None = None
    for after in range(position + 1, len(chain)):
        element = chain[after]
        if not isinstance(element, Layer) or element.make is None:
            return None
        found = element.make()
        composed = found if composed is None else composed.then(found)
        if not composed.is_affine:
            weight = composed.weight.reshape(len(composed.weight), channels, *size)
            ones, zeros = (1,) * len(size), (0,) * len(size)
            whole = ConvMap(weight, composed.bias, ones, zeros, ones, 1)
            return Segment(
                flattening.source, element.node, whole, 1, after > position + 1
            ), after + 1
    return None


def _sum_unit(element: Sum, prices: Prices) -> Segment:
    """Return the unit of a sum: one map if its branches compose, else a sum of cut branches."""
    layers = 1 + sum(_weighted(part) for part in (*element.first, *element.second))
    branches = (tuple(best_cut(element.first, prices)), tuple(best_cut(element.second, prices)))
    try:
        whole = _composed_sum(element)
    except Inexact as reason:
        return Segment(
            element.source, element.node, None, layers, False, branches, reason=str(reason)
        )
    return Segment(element.source, element.node, whole, layers, True, branches)


def _weighted(element: Element) -> int:
    if isinstance(element, Sum):
        return 1 + sum(_weighted(part) for part in (*element.first, *element.second))
    return int(element.weighted)


def _composed_sum(element: Sum) -> ConvMap:
    maps = [_composed(branch) for branch in (element.first, element.second)]
    known = next((found for found in maps if found is not None), None)
    if known is None:
        shape = tensor_shape(element.source)
        channels = shape[1] if element.layout == "conv" else shape[-1]
        if not isinstance(channels, int) or element.layout not in ("conv", "last"):
            raise Inexact("it is not known which dimension holds the channels")
        known = ConvMap.identity(channels, len(shape) - 2 if element.layout == "conv" else 0)
    identity = ConvMap.identity(known.channels_in, known.spatial)
    first, second = (found if found is not None else identity for found in maps)
    return first.plus(second.scaled(element.sign))


def _composed(chain: Sequence[Element]) -> ConvMap | None:
    """Return the one map of a whole chain, None for a chain that does nothing."""
    maps: list[ConvMap] = []
    for element in chain:
        if isinstance(element, Sum):
            maps.append(_composed_sum(element))
        elif element.make is None:
            raise Inexact("a branch flattens its input")
        else:
            maps.append(element.make())
    return _in_a_row(maps) if maps else None


def _in_a_row(maps: Sequence[ConvMap]) -> ConvMap:
    """Return the one map that does one after the other.

    Where joining from the front is not exact, joining from the back may be: a shift before a padded
    layer in groups cannot be carried on, but can if a dense layer follows.
    """
    try:
        return reduce(lambda first, second: first.then(second), maps)
    except Inexact:
        if len(maps) < 3:
            raise
        return reduce(lambda second, first: first.then(second), reversed(maps))


# ---------------------------------------------------------------------- folding


def _fold(units: list[Segment]) -> list[Segment]:
    """Fold scales, shifts and nodes that do nothing into their neighbours, where exact."""
    folded: list[Segment] = []
    for unit in units:
        previous = folded[-1] if folded else None
        merged = None
        if previous is not None and (_light(unit) or _light(previous)):
            merged = _folded(previous, unit)
        if merged is not None:
            folded[-1] = merged
        else:
            folded.append(unit)
    return folded


def _light(unit: Segment) -> bool:
    """Whether a unit only scales and shifts."""
    return not unit.branches and not unit.layers and unit.map is not None and unit.map.is_affine


def _folded(first: Segment, second: Segment) -> Segment | None:
    """Return both as one unit, if one of them is light and the composition is exact."""
    if first.branches:
        return _into_branches(first, second)
    if second.branches:
        return None
    if first.map is None or second.map is None:
        return None
    try:
        composed = first.map.then(second.map)
    except Inexact:
        return None
    if composed.ones and not first.map.ones:
        return None  # a folding must not cost a channel
    return _united(first, second, composed)


def _united(first: Segment, second: Segment, composed: ConvMap) -> Segment:
    return Segment(
        first.start,
        second.end,
        composed,
        first.layers + second.layers,
        True,
        reason=first.reason or second.reason,
    )


def _into_branches(unit: Segment, light: Segment) -> Segment | None:
    """Push a scale and shift after a sum into its two branches, if both end with layers."""
    assert light.map is not None
    ends = [branch[-1] if branch else None for branch in unit.branches]
    if any(end is None or end.map is None or end.layers == 0 for end in ends):
        return None
    if any(end is not None and len(end.end.users) > 1 for end in ends):
        return None  # another reader wants it as it is
    pushed = []
    for k, branch in enumerate(unit.branches):
        last = branch[-1]
        assert last.map is not None
        scaled = last.map.then(light.map if k == 0 else light.map.without_shift())
        pushed.append((*branch[:-1], replace(last, map=scaled, changed=True)))
    whole = None if unit.map is None else unit.map.then(light.map)
    return replace(unit, end=light.end, map=whole, changed=True, branches=tuple(pushed))


# ---------------------------------------------------------------------- joining


def _join(units: Sequence[Segment], prices: Prices) -> tuple[float, Segment] | None:
    """Return the cost of these units as one segment, None if they cannot or need not be one."""
    if len(units) == 1:
        return _alone(units[0], prices)
    if not prices.joins or any(unit.map is None for unit in units):
        return None
    if not any(unit.layers for unit in units):
        return None  # slices and paddings only move data: a layer in their place costs more
    try:
        composed = _in_a_row([unit.map for unit in units if unit.map is not None])
    except Inexact:
        return None
    start = units[0].start
    parts = [unit.map for unit in units if unit.map is not None]
    if _work(composed) > prices.most_work * sum(map(_work, parts)):
        return None
    price, apart = _price(composed, units, prices), sum(_alone(unit, prices)[0] for unit in units)
    layers = sum(unit.layers for unit in units)
    segment = Segment(start, units[-1].end, composed, layers, True, cost=price, cost_apart=apart)
    return price / prices.margin, segment


def _alone(unit: Segment, prices: Prices) -> tuple[float, Segment]:
    """Return the cheaper form of a unit: one layer, or the sum of its branches."""
    apart = 0.0
    for branch in unit.branches:
        for part in branch:
            apart += _alone(part, prices)[0] if part.map is not None or part.branches else 0.0
    if unit.map is None:
        return apart, unit
    if not unit.branches:
        return prices.of(unit.map, unit.start), unit
    reason = ""
    if prices.joins:
        parts = [part for branch in unit.branches for part in branch]
        together = _price(unit.map, [unit, *parts], prices) / prices.margin
        # the addition costs about what scaling and shifting the same tensor does
        apart += prices.of(ConvMap.identity(unit.map.channels_out, unit.map.spatial), unit.end)
        if together <= apart:
            price = together * prices.margin
            return together, replace(unit, branches=(), cost=price, cost_apart=apart)
        reason = "as one layer it would be slower"
    changed = any(part.changed for branch in unit.branches for part in branch)
    return apart, replace(unit, map=None, changed=changed, reason=reason)


def _price(composed: ConvMap, units: Sequence[Segment], prices: Prices) -> float:
    """Return the cost of a composed map, at most that of a unit which does all its work and more.

    It is known before it is measured that the map cannot cost more than such a unit, and a
    measurement that says so comes from a busy machine.

    Args:
        composed: a map on the input of the first unit.
        units: what it stands for.
        prices: by what the cut is chosen.
    """
    more = [u for u in units if u.map is not None and composed.works_within(u.map)]
    known = [prices.of(unit.map, unit.start) for unit in more if unit.map is not None]
    return min([prices.of(composed, units[0].start), *known])


def _work(found: ConvMap) -> float:
    """Return multiply-accumulates per output position, in proportion to the output's size."""
    return found.weight.numel() / torch.tensor(found.stride).prod().item() if found.spatial else (
        float(found.weight.numel())
    )  # fmt: skip


def _with_reasons(segments: list[Segment], joins: bool) -> list[Segment]:
    """Note on each segment why it was not merged with the next one."""
    out = []
    for i, segment in enumerate(segments):
        reason = segment.reason
        if not reason and i + 1 < len(segments):
            following = segments[i + 1]
            if segment.map is None or following.map is None:
                reason = "its neighbour is a sum of branches"
            else:
                try:
                    segment.map.then(following.map)
                    reason = "merged with the next layer it would be slower" if joins else ""
                except Inexact as error:
                    reason = str(error)
        out.append(replace(segment, reason=reason))
    return out
