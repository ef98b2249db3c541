"""What block and site criteria score: places in the graph and what would stand there instead."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from shoal.errors import ConfigError
from shoal.network import Network
from shoal.network.blocks import Block

__all__ = ["Candidate", "block_candidates", "candidates"]


@dataclass(frozen=True)
class Candidate:
    """A removable block, or a site that has its rectifier.

    Attributes:
        name: of the block or site.
        node: whose value a removal changes: the addition, or the rectifier.
        source: whose value it then is: the shortcut, or the rectifier's input.
    """

    name: str
    node: fx.Node
    source: fx.Node


def candidates(network: Network, place: str) -> list[Candidate]:
    """Return what can be removed, in the order of the forward pass.

    Args:
        network: the captured network.
        place: "block" for removable blocks, "site" for sites that have their rectifier.

    Raises:
        ConfigError: there is none.
    """
    if place == "block":
        return [Candidate(b.name, b.addition, b.shortcut) for b in block_candidates(network)]
    sites = [site for site in network.sites if site.linearized is None]
    if not sites:
        raise ConfigError("the network has no rectifier left to score")
    return [Candidate(site.name, site.node, site.node.all_input_nodes[0]) for site in sites]


def block_candidates(network: Network) -> list[Block]:
    """Return the removable blocks; raises `ConfigError` if there is none."""
    blocks = network.blocks
    removable = [block for block in blocks if block.removable]
    if removable:
        return removable
    if not blocks:
        raise ConfigError(
            "the network has no residual block: choose a method or a criterion for sites"
        )
    first = blocks[0]
    raise ConfigError(
        f"none of the network's {len(blocks)} residual blocks can be removed; "
        f"'{first.name}': {first.reason}"
    )
