"""Which layer feeds a rectifier."""

from __future__ import annotations

from torch import fx

from shoal.network.network import Network
from shoal.network.ops import op_of
from shoal.network.weights import is_weighted

__all__ = ["layer_before"]


def layer_before(network: Network, site: str) -> str | None:
    """Return the path of the layer with weights that a site's rectifier follows directly.

    Norms, scales and dropout may lie between. Where the site follows the addition of a residual
    block, it is the last layer of the branch.

    Args:
        network: the captured network.
        site: the name of one of its sites.

    Returns:
        None where there is none: at an input, after a pooling, or where the weights are computed.
    """
    branch_ends = {block.addition: block.output for block in network.blocks}
    node = network.node_of(site).all_input_nodes[0]
    while True:
        if is_weighted(node, network):
            return str(node.target) if node.op == "call_module" else None
        step = branch_ends.get(node, node.all_input_nodes[0] if _passes(node, network) else None)
        if step is None:
            return None
        node = step


def _passes(node: fx.Node, network: Network) -> bool:
    """Whether a node only scales, shifts or drops entries of its first operand."""
    if node.op not in ("call_module", "call_function") or not node.all_input_nodes:
        return False
    target = network.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    known = op_of(target)
    if known.rectifier is not None or known.addition or known.pool:
        return False
    norm = node.op == "call_module" and known.channels == "second" and not known.weighted
    return norm or known.channels == "last" or known.linear in ("scale", "nothing")
