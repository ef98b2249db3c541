"""Why something was not merged: the one place that puts it into words.

Why two maps have no single one that equals them, the algebra itself says (`Inexact`).
"""

from __future__ import annotations

from torch import fx

from shoal.merge.algebra import Inexact, then
from shoal.merge.linear_ops import linear_map, operands
from shoal.merge.regions import Region
from shoal.merge.report import Boundary
from shoal.merge.units import Segment
from shoal.network import Network
from shoal.network.rewrite import between

__all__ = [
    "CHANGED",
    "CHANGED_ALL",
    "FOLD_ONLY",
    "NEEDED",
    "SUM_IS_FASTER",
    "WHOLE_IS_SLOWER",
    "boundary",
    "why_apart",
]

# What undoes a merge as a whole, and a part of it.
CHANGED = "merging it changed the output by more than rounding"
CHANGED_ALL = "merging changed the output"
SUM_IS_FASTER = "as one layer it would be slower"
NEEDED = "a tensor inside is needed elsewhere"
WHOLE_IS_SLOWER = "the whole network was measured to be slower with it"
FOLD_ONLY = "only scales and shifts were to be folded"


def why_apart(segment: Segment, following: Segment | None, *, joins: bool) -> str:
    """Return why a segment is not one layer with the following one, or a sum not one at all.

    Args:
        segment: a segment of the best cut.
        following: the next one; None for the last.
        joins: whether layers could become one at all.

    Returns:
        The reason; empty where there is nothing to say.
    """
    if segment.map is None and segment.branches:
        return segment.reason or FOLD_ONLY
    if following is None:
        return ""
    if segment.map is None or (following.map is None and not following.branches):
        return "what comes after it is flattened first"
    if following.map is None:
        return "its neighbour is a sum of branches"
    try:
        then(segment.map, following.map)
    except Inexact as error:
        return str(error)
    if joins:
        return "merging it with the next layer would be slower"
    if segment.scales:
        return "folding it would cost the next layer a channel of ones"
    return FOLD_ONLY if segment.layers and following.layers else ""


# ---------------------------------------------------------------------- regions


def boundary(region: Region, network: Network) -> Boundary:
    """Return where a region of this network begins and ends, and why."""
    inside = between(region.start, region.end)
    ordered = [node for node in network.graph.nodes if node in inside]
    layers = tuple(str(node.target) for node in ordered if node.op == "call_module")
    return Boundary(
        region=region.end.name,
        layers=layers or tuple(node.name for node in ordered),
        begins=_begins(region, network, inside),
        ends=_ends(region, network, inside),
    )


def _begins(region: Region, network: Network, inside: set[fx.Node]) -> str:
    """Return why a region begins here.

    A layer that mixes another dimension, and an addition of two tensors of different origin, are
    linear themselves, and yet a region cannot reach across them.
    """
    start = region.start
    if start.op == "placeholder":
        return "it is the network's input"
    if all(user in inside for user in start.users):
        if operands(start) is not None:
            return f"{_name(start)} adds two tensors that do not come from one linearly"
        if linear_map(start, network) is not None:
            return f"{_name(start)} has its channels in another dimension"
    if start is region.root:
        return f"{_name(start)} is not linear"
    return f"the output of {_name(start)} is needed elsewhere too"


def _ends(region: Region, network: Network, inside: set[fx.Node]) -> str:
    users, leaving = list(region.end.users), region.leaving
    if len(users) == 1 and users[0] not in inside and users[0].op != "output":
        user = users[0]
        if operands(user) is not None:
            return (
                f"{_name(user)} adds a tensor to it that does not come linearly from where it "
                "begins"
            )
        found = linear_map(user, network)
        if found is not None and found.source is region.end:
            return f"{_name(user)} has its channels in another dimension"
    if not leaving:
        return "the network ends"
    name = _name(leaving[0])
    if len(users) > 1:
        return f"its output is needed {len(users)} times, by {name} among others"
    if leaving[0].op == "output":
        return "it is the network's output"
    return f"{name} is not linear in it"


def _name(node: fx.Node) -> str:
    if node.op == "call_module":
        return f"'{node.target}'"
    path = node.meta.get("path")
    return f"{node.name} in '{path}'" if path else f"'{node.name}'"
