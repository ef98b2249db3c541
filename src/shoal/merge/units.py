"""The units of a chain: what a cut joins or leaves apart.

Each layer of a chain is a unit, and so is each sum of two branches, as one map where that is exact.
Scales and shifts are folded into the unit before them, or after them, where that is exact.

Flattening and the linear layer after it are a convolution over the whole image, whose output has a
single position; later linear layers are convolutions over that position. A convolution over the
whole image computes the same as a linear layer, and much slower, so what is built is a linear layer
again, with the flattening before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeAlias

from torch import fx

from shoal.merge.algebra import Inexact, in_a_row, plus, then
from shoal.merge.conv_map import ConvMap
from shoal.merge.linear_ops import Linear, tensor_shape
from shoal.merge.regions import Element, Sum


@dataclass(frozen=True)
class Segment:
    """A run of elements that becomes one layer, or stays as it is."""

    start: fx.Node  # the tensor it reads
    end: fx.Node  # the tensor it gives
    map: ConvMap | None  # composed; None where it stays a sum of branches, or flattens
    layers: int  # how many weighted layers or sums it replaces
    changed: bool  # whether anything is different from what is there
    branches: tuple[tuple[Segment, ...], ...] = ()  # for a sum that stays, their cuts
    reason: str = ""  # why a sum is not one layer
    cost: float | None = None  # of the one layer; None where nothing was joined
    cost_apart: float | None = None  # of its parts, scales and shifts folded

    @property
    def is_light(self) -> bool:
        """Whether it only scales and shifts, and is no layer with weights."""
        return not self.branches and not self.layers and self.map is not None and self.map.is_affine

    @property
    def scales(self) -> bool:
        """Whether it scales and shifts, rather than only hand on or move what it reads."""
        return self.map is not None and self.map.is_affine and not self.map.is_identity


Cut: TypeAlias = Callable[[Sequence[Element]], Sequence[Segment]]


def folded_units(chain: Sequence[Element], cut: Cut) -> list[Segment]:
    """Return the units of a chain, scales and shifts folded; `cut` cuts the chains of branches."""
    folded: list[Segment] = []
    for unit in _units(chain, cut):
        light = bool(folded) and (unit.is_light or folded[-1].is_light)
        merged = _folded(folded[-1], unit) if light else None
        if merged is not None:
            folded[-1] = merged
        else:
            folded.append(unit)
    return folded


def weighted(chain: Sequence[Element], of_sum: int = 0) -> int:
    """Return how many layers with weights there are, in branches too; sums may count as well."""
    return sum(
        of_sum + weighted((*element.first, *element.second), of_sum)
        if isinstance(element, Sum)
        else element.weighted
        for element in chain
    )


# ---------------------------------------------------------------------- units


def _units(chain: Sequence[Element], cut: Cut) -> list[Segment]:
    units: list[Segment] = []
    flat: int | None = None  # dimensions of the image that was flattened into one position
    position = 0
    while position < len(chain):
        element = chain[position]
        if isinstance(element, Sum):
            unit = _sum(element, cut)
        else:
            made = element.make and element.make()
            unit = Segment(element.source, element.node, made, int(element.weighted), False)
        if isinstance(element, Sum) or element.make is not None:
            unit = unit if flat is None else _spread(unit, flat)
        elif (found := _whole_image(chain, position)) is not None:
            whole, last = found
            unit = replace(
                unit, end=chain[last].node, map=whole, layers=1, changed=last > position + 1
            )
            flat, position = whole.spatial, last
        units.append(unit)
        position += 1
    return units


def _spread(unit: Segment, spatial: int) -> Segment:
    """Return a unit of linear layers, and all in its branches, as over a single position."""
    one = unit.map
    if one is not None:
        one = ConvMap.over(one.weight[(..., *[None] * spatial)], one.bias, one.groups)
    branches = tuple(tuple(_spread(s, spatial) for s in branch) for branch in unit.branches)
    return replace(unit, map=one, branches=branches)


def _sum(element: Sum, cut: Cut) -> Segment:
    """Return the unit of a sum: one map if its branches compose, else a sum of cut branches."""
    layers = weighted([element], of_sum=1)
    branches = (tuple(cut(element.first)), tuple(cut(element.second)))
    unit = Segment(element.source, element.node, None, layers, False, branches)
    try:
        return replace(unit, map=_composed_sum(element), changed=True)
    except Inexact as error:
        return replace(unit, reason=str(error))


def _composed_sum(element: Sum) -> ConvMap:
    maps = [_composed(branch) for branch in (element.first, element.second)]
    known = next((branch for branch in maps if branch is not None), None)
    if known is None:
        shape = tensor_shape(element.source)
        channels = shape[1] if element.layout == "conv" else shape[-1]
        if not isinstance(channels, int) or element.layout not in ("conv", "last"):
            raise Inexact("it is not known which dimension holds the channels")
        known = ConvMap.identity(channels, len(shape) - 2 if element.layout == "conv" else 0)
    identity = ConvMap.identity(known.channels_in, known.spatial)
    first, second = (branch if branch is not None else identity for branch in maps)
    return plus(first, second.scaled(element.sign))


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
    return in_a_row(maps) if maps else None


# ---------------------------------------------------------------------- flattening


def _whole_image(chain: Sequence[Element], position: int) -> tuple[ConvMap, int] | None:
    """Return the flattening at `position` and what follows, up to the first linear layer.

    They are one convolution, which comes with that layer's position. None if none follows.
    """
    channels, *size = (n for n in tensor_shape(chain[position].source)[1:] if n is not None)
    layers: list[ConvMap] = []
    for after in range(position + 1, len(chain)):
        element = chain[after]
        if not isinstance(element, Linear) or element.make is None:
            return None
        layers.append(element.make())
        composed = reduce(then, layers)
        if not composed.is_affine:
            weight = composed.weight.reshape(len(composed.weight), channels, *size)
            return ConvMap.over(weight, composed.bias), after
    return None


def place_of_flattening(start: fx.Node, end: fx.Node, composed: ConvMap | None) -> str | None:
    """Return where a flattening goes: "before" layers that see all at once, or "after"; or None."""
    shape = tensor_shape(start)
    if len(shape) == 2 or len(tensor_shape(end)) != 2:
        return None
    if all(n == 1 for n in shape[2:]):
        single = composed is None or composed.channels_out == tensor_shape(end)[1]
        return "before" if single else "after"
    return "before" if composed is not None and composed.covers(shape[2:]) else "after"


def as_built(composed: ConvMap, start: fx.Node, place: str | None) -> ConvMap:
    """Return the map in the form it is built in: linear where it reads flat values."""
    shape = tensor_shape(start)
    if place == "before" and composed.covers(shape[2:]):
        return composed.flat()
    if composed.spatial and (place == "before" or len(shape) == 2):
        return composed.at_one_position()
    return composed


# ---------------------------------------------------------------------- folding


def _folded(first: Segment, second: Segment) -> Segment | None:
    """Return both as one unit, if one of them is light and the composition is exact."""
    if first.branches:
        return _into_branches(first, second)
    if second.branches or first.map is None or second.map is None:
        return None
    try:
        composed = then(first.map, second.map)
    except Inexact:
        return None
    if composed.ones and not first.map.ones:
        return None  # a folding must not cost a channel
    if not (first.layers or second.layers or composed.is_affine):
        return None  # pooling, slices and paddings are no layers, and would become one
    return Segment(first.start, second.end, composed, first.layers + second.layers, True)


def _into_branches(unit: Segment, light: Segment) -> Segment | None:
    """Push a scale and shift after a sum into its two branches, if both end with layers."""
    assert light.map is not None
    pushed = []
    for branch, scale in zip(unit.branches, (light.map, light.map.without_shift()), strict=True):
        last = branch[-1] if branch else None
        if last is None or last.map is None or last.layers == 0:
            return None
        if len(last.end.users) > 1:
            return None  # another reader wants it as it is
        pushed.append((*branch[:-1], replace(last, map=then(last.map, scale), changed=True)))
    whole = unit.map and then(unit.map, light.map)
    return replace(unit, end=light.end, map=whole, changed=True, branches=tuple(pushed))
