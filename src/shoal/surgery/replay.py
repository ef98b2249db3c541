"""Replay a plan on its base network: rebuild the architecture, with weights still to be loaded."""

from __future__ import annotations

from collections.abc import Callable

import torch

from shoal.errors import PlanError, ShoalError
from shoal.network import Network, Operation, Plan
from shoal.registry import Registry
from shoal.surgery.linearize import put_linear_

__all__ = ["replay_", "replayers"]

replayers: Registry[Callable[[Network, Operation], None]] = Registry("operation")


def replay_(network: Network, plan: Plan) -> Network:
    """Do a plan's operations to a freshly captured base network, in place.

    Args:
        network: a capture of the plan's base model, with an empty plan.
        plan: what to do.

    Raises:
        PlanError: the plan does not fit the network, or holds an operation unknown here.
    """
    for operation in plan.operations:
        if operation.kind not in replayers:
            raise PlanError(
                f"the plan holds the operation '{operation.kind}', which this version of shoal "
                "does not know: update shoal"
            )
        try:
            replayers[operation.kind](network, operation)
        except PlanError:
            raise
        except ShoalError as error:
            raise PlanError(f"the plan does not fit this model: {error}") from error
        network.plan.operations.append(operation)
    network.plan.base = plan.base
    return network


@replayers.register("linearize")
def _linearize(network: Network, operation: Operation) -> None:
    for name in operation.names:
        site = network.site(name)
        line = None
        if operation.options.get("how") == "line":
            if site.channels is None:
                raise PlanError(f"the number of channels of site '{name}' is unknown")
            line = torch.ones(site.channels), torch.zeros(site.channels)
        put_linear_(network, site, line)
