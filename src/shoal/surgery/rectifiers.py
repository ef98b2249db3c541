"""Swap all rectifiers of a network for another kind, to be trained with it (EASIER, Fig. 3b)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from shoal.errors import unknown_name
from shoal.network import Network, Operation
from shoal.surgery.linearize import put_module

RECTIFIERS: Mapping[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}
"""What may take a rectifier's place, by the kind of its site; as PyTorch makes it by default."""


def swap_rectifiers_(network: Network, kind: str) -> list[Operation]:
    """Put rectifiers of another kind in the place of all that are left, in place.

    Sites keep their names, those that have this kind already keep their rectifier with all that it
    learned, and linearized ones stay linearized. The network has to be trained afterwards. Each
    site gets a rectifier of its own; `prelu` has one slope for each, which starts at 0.25.

    Args:
        network: changed in place.
        kind: "gelu", "leaky_relu" (slope 0.01), "prelu", "relu" or "silu".

    Returns:
        What the plan records of it; nothing if there was nothing to swap.

    Raises:
        NameNotFoundError: there is no such kind.

    Example:
        >>> import shoal, torch
        >>> net = shoal.capture(shoal.models.digits_resnet(), torch.randn(2, 1, 8, 8))
        >>> operations = shoal.swap_rectifiers_(net, "gelu")
        >>> {site.kind for site in net.sites}
        {'gelu'}
    """
    if kind not in RECTIFIERS:
        raise unknown_name("rectifier", kind, RECTIFIERS)
    sites = [s for s in network.sites if s.linearized is None and s.kind != kind]
    for site in sites:
        put_module(network, site, RECTIFIERS[kind]())
        network.name_rectifier(site.name, kind)
    names = tuple(site.name for site in sites)
    return [network.plan.record("swap", names, rectifier=kind)] if sites else []
