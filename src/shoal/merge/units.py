"""The units of a chain: what a cut joins or leaves apart.

Each layer of a chain is a unit, and so is each sum of two branches, as one map where that is exact.
Scales and shifts are folded into the unit before them, or after them, where that is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import fx

from shoal.merge.algebra import Inexact, in_a_row, plus, then
from shoal.merge.conv_map import ConvMap
from shoal.merge.flattening import over_one_position, whole_image
from shoal.merge.linear_ops import tensor_shape
from shoal.merge.regions import Element, Sum

__all__ = ["Segment", "folded_units", "weighted"]


@dataclass(frozen=True)
class Segment:
    """A run of elements that becomes one layer, or stays as it is.

    Attributes:
        start: the tensor it reads.
        end: the tensor it gives.
        map: what it computes, composed; None where it stays a sum of branches, or flattens.
        layers: how many weighted layers or sums it replaces.
        changed: whether anything is different from what is there.
        branches: for a sum that stays, the cuts of its branches.
        reason: why a sum is not one layer.
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

    @property
    def is_light(self) -> bool:
        """Whether it only scales and shifts, and is no layer with weights."""
        return not self.branches and not self.layers and self.map is not None and self.map.is_affine

    @property
    def scales(self) -> bool:
        """Whether it scales and shifts, rather than only hand on or move what it reads."""
        return self.map is not None and self.map.is_affine and not self.map.is_identity


Cut = Callable[[Sequence[Element]], Sequence[Segment]]


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


def weighted(chain: Sequence[Element]) -> int:
    """Return how many layers with weights there are, in the branches too."""
    return sum(
        weighted(element.first) + weighted(element.second)
        if isinstance(element, Sum)
        else int(element.weighted)
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
            made = None if element.make is None else element.make()
            unit = Segment(element.source, element.node, made, int(element.weighted), False)
        if isinstance(element, Sum) or element.make is not None:
            units.append(unit if flat is None else _spread(unit, flat))
        elif (found := whole_image(chain, position)) is not None:
            whole, last = found
            units.append(replace(unit, end=chain[last].node, map=whole, layers=1,
                                 changed=last > position + 1))  # fmt: skip
            flat, position = whole.spatial, last
        else:
            units.append(unit)
        position += 1
    return units


def _spread(unit: Segment, spatial: int) -> Segment:
    """Return a unit of linear layers, and all in its branches, as over a single position."""
    return replace(
        unit,
        map=None if unit.map is None else over_one_position(unit.map, spatial),
        branches=tuple(tuple(_spread(s, spatial) for s in branch) for branch in unit.branches),
    )


def _sum(element: Sum, cut: Cut) -> Segment:
    """Return the unit of a sum: one map if its branches compose, else a sum of cut branches."""
    layers = _sums(element) + weighted([element])
    branches = (tuple(cut(element.first)), tuple(cut(element.second)))
    unit = Segment(element.source, element.node, None, layers, False, branches)
    try:
        return replace(unit, map=_composed_sum(element), changed=True)
    except Inexact as error:
        return replace(unit, reason=str(error))


def _sums(element: Element) -> int:
    if not isinstance(element, Sum):
        return 0
    return 1 + sum(map(_sums, (*element.first, *element.second)))


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
    return Segment(first.start, second.end, composed, first.layers + second.layers, True)


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
        scaled = then(last.map, light.map if k == 0 else light.map.without_shift())
        pushed.append((*branch[:-1], replace(last, map=scaled, changed=True)))
    whole = None if unit.map is None else then(unit.map, light.map)
    return replace(unit, end=light.end, map=whole, changed=True, branches=tuple(pushed))
