"""Where a region begins and ends, and why: in words for reports."""

from __future__ import annotations

from torch import fx

from shoal.merge.linear_ops import linear_map, operands
from shoal.merge.regions import Region
from shoal.merge.report import Boundary
from shoal.network import Network
from shoal.network.rewrite import between

__all__ = ["boundary"]


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
    """Tell apart the tensors that begin a region for want of linearity from those that do not.

    A layer that mixes another dimension, and an addition of two tensors of different origin, are
    linear themselves: the region cannot reach across them all the same.
    """
    start = region.start
    if start.op == "placeholder" or any(user not in inside for user in start.users):
        return region.begins_because
    if operands(start) is not None:
        return f"{_name(start)} adds two tensors that do not come from one linearly"
    if linear_map(start, network) is not None:
        return f"{_name(start)} has its channels in another dimension"
    return region.begins_because


def _ends(region: Region, network: Network, inside: set[fx.Node]) -> str:
    outside = [user for user in region.end.users if user not in inside]
    if len(region.end.users) != 1 or len(outside) != 1 or outside[0].op == "output":
        return region.ends_because
    user = outside[0]
    if operands(user) is not None:
        return f"{_name(user)} adds a tensor to it that does not come linearly from where it begins"
    found = linear_map(user, network)
    if found is not None and found.source is region.end:
        return f"{_name(user)} has its channels in another dimension"
    return region.ends_because


def _name(node: fx.Node) -> str:
    if node.op == "call_module":
        return f"'{node.target}'"
    path = node.meta.get("path")
    return f"{node.name} in '{path}'" if path else f"'{node.name}'"
