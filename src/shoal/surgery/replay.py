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
    """Do a plan's operations to its base network, in place.

    Args:
        network: a capture of the plan's base model. Operations that its own plan holds already
            are not done again; the plan must begin with them.
        plan: what to do.

    Returns:
        The network itself. Its weights are those of the base; new ones are placeholders.

    Raises:
        PlanError: the plan does not fit the network, or holds an operation unknown here.
    """
    done = network.plan.operations
    if plan.operations[: len(done)] != done:
        raise PlanError(
            "the network was changed in another way than the plan says: give a fresh capture of "
            "the base model"
        )
    for operation in plan.operations[len(done) :]:
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
    how = operation.options.get("how")
    if how not in ("line", "identity"):
        raise PlanError(f"the plan linearizes by '{how}', which is neither 'line' nor 'identity'")
    for name in operation.names:
        site = network.site(name)
        if site.linearized is not None:
            raise PlanError(f"the plan linearizes site '{name}' twice: the file is damaged")
        line = None
        if how == "line":
            if site.channels is None:
                raise PlanError(f"the number of channels of site '{name}' is unknown")
            line = torch.ones(site.channels), torch.zeros(site.channels)
        put_linear_(network, site, line)
