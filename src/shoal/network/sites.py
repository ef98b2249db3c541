"""Sites: the calls of rectifiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from shoal.network.channels import channel_dim
from shoal.network.modules import Line

__all__ = ["Site", "find_sites"]

_STATES: dict[type, str] = {Line: "line", nn.Identity: "identity"}


@dataclass(frozen=True)
class Site:
    """One call of a rectifier in the forward graph.

    Attributes:
        name: the path of its module in the network; unique and stable.
        kind: the rectifier ("relu", "gelu", …), also after it was linearized.
        path: the path of the original module that calls it.
        channel_dim: the dimension of its input that holds the neurons.
        channels: the number of neurons, None where the shape does not fix it.
        linearized: "line" or "identity" once it was linearized, else None.
        node: the node that calls it.
    """

    name: str
    kind: str
    path: str
    channel_dim: int
    channels: int | None
    linearized: str | None
    node: fx.Node = field(repr=False, compare=False)


def find_sites(
    graph: fx.Graph, root: nn.Module, records: Mapping[str, tuple[str, str]]
) -> list[Site]:
    """Return the sites in the order of the forward pass, linearized ones included."""
    found = []
    for node in graph.nodes:
        if node.op == "call_module" and node.target in records:
            kind, path = records[node.target]
            dim = channel_dim(node.all_input_nodes[0], root)
            shape = node.meta.get("shape")
            channels = shape[dim] if shape is not None else None
            state = _STATES.get(type(root.get_submodule(node.target)))
            found.append(Site(node.target, kind, path, dim, channels, state, node))
    return found
