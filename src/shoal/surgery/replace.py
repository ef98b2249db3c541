"""Replace: put modules of a method's own in the place of sites' rectifiers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from shoal.errors import ConfigError, unknown_name
from shoal.network import Network
from shoal.network.ops import name_of
from shoal.surgery.linearize import hand_over

__all__ = ["replace_"]


def replace_(network: Network, modules: Mapping[str, nn.Module]) -> Network:
    """Put modules in the place of sites' rectifiers, in place, and record it in the plan.

    A site keeps its name, and may be linearized later.

    Args:
        network: the captured network.
        modules: by the names of the sites; each maps a tensor to one of the same shape, and is of
            a type that a saved network can hold, such as nn.PReLU.

    Returns:
        The network itself.

    Raises:
        NameNotFoundError: a site does not exist; tells the nearest.
        ConfigError: a site is linearized already, or a module's type cannot be saved.
    """
    sites = {site.name: site for site in network.sites}
    for name, module in modules.items():
        if name not in sites:
            raise unknown_name("site", name, sites)
        if sites[name].linearized is not None:
            raise ConfigError(f"site '{name}' is linearized already: omit it")
        if name_of(type(module)) is None:
            raise ConfigError(
                f"a {type(module).__name__} cannot be saved: register its type by "
                "shoal.register_op, or take a module of PyTorch"
            )
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    for name, module in modules.items():
        old = network.get_submodule(name)
        hand_over(network, old)
        module.to(like.device, like.dtype).train(old.training)
        network.replace_module(name, module)
    if modules:
        types = {name: name_of(type(module)) for name, module in modules.items()}
        network.plan.record("replace", tuple(modules), modules=types)
    return network
