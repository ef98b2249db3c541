"""Read folders of format 1: a plan that is replayed on a capture of the base model, and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from shoal.errors import CheckpointError, PlanError, ShoalError
from shoal.merge.padding import move_padding_
from shoal.merge.peephole import fix_lines, simplify_
from shoal.models import load_model, parse_spec
from shoal.modes import make_channels_last
from shoal.network import Network, Operation, Plan, capture
from shoal.network.cleanup import remove_dead_, used_paths
from shoal.network.modules import Line, OnesChannel
from shoal.network.rewrite import replace_stretch_
from shoal.network.saving import WEIGHTS_FILE, file_hash, read_description
from shoal.surgery.drop import drop_
from shoal.surgery.linearize import put_linear_

__all__ = ["PLAN_FILE", "read_format1", "replay_"]

PLAN_FILE = "plan.json"
_DOWNLOADS = ("pretrained", "weights")  # arguments of a base model that fetch weights
_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
    "linear": nn.Linear,
    "line": lambda channels, channel_dim: Line(
        torch.ones(channels), torch.zeros(channels), channel_dim
    ),
    "ones": OnesChannel,
    "batch_norm2d": nn.BatchNorm2d,
}


def read_format1(folder: Path, model: nn.Module | None) -> Network:
    """Return the network of a folder of format 1, in eval mode, on the CPU.

    Raises:
        PlanError: it is damaged, or the model is missing or another one.
        CheckpointError: the weights are damaged or do not fit.
    """
    description = read_description(folder / PLAN_FILE, 1)
    plan = Plan.from_dict(description)
    network = _capture_base(plan, description, model)
    if plan.fingerprint and network.plan.fingerprint != plan.fingerprint:
        raise PlanError(
            f"'{folder}' was made from another model than {plan.base or type(model).__name__} as "
            "it is here: its layers or rectifiers differ"
        )
    replay_(network, plan)
    _load_weights(network, folder, description)
    return network.eval()


def replay_(network: Network, plan: Plan) -> Network:
    """Do a plan's operations to a capture of its base model, in place; weights are placeholders.

    Raises:
        PlanError: the plan does not fit the network, or holds an operation unknown here.
    """
    for operation in plan.operations:
        if operation.kind not in _REPLAYS:
            raise PlanError(
                f"the plan holds the operation '{operation.kind}', which this version of shoal "
                "does not know: update shoal"
            )
        try:
            _REPLAYS[operation.kind](network, operation)
        except PlanError:
            raise
        except ShoalError as error:
            raise PlanError(f"the plan does not fit this model: {error}") from error
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise PlanError(
                f"the plan's operation '{operation.kind}' is damaged: {error}"
            ) from error
    network.plan.operations[:] = plan.operations
    network.plan.base = plan.base
    return network


# ---------------------------------------------------------------------- operations


def _linearize(network: Network, operation: Operation) -> None:
    how = operation.options.get("how")
    if how not in ("line", "identity"):
        raise PlanError(f"the plan linearizes by '{how}', which is neither 'line' nor 'identity'")
    for name in operation.names:
        site, line = network.site(name), None
        if site.linearized is not None:
            raise PlanError(f"the plan linearizes site '{name}' twice: the file is damaged")
        if how == "line":
            if site.channels is None:
                raise PlanError(f"the number of channels of site '{name}' is unknown")
            line = torch.ones(site.channels), torch.zeros(site.channels)
        put_linear_(network, site, line)


def _drop(network: Network, operation: Operation) -> None:
    drop_(network, operation.names)


def _collapse(network: Network, operation: Operation) -> None:
    layers, (name,) = _layers(operation.options["layers"]), operation.names
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    stretch = network.stretch(name)
    made = [(path, module.to(like.device, like.dtype)) for path, module in layers]
    replace_stretch_(network, stretch.start, stretch.end, made)
    remove_dead_(network)


def _pad(network: Network, operation: Operation) -> None:
    first, second = operation.names
    move_padding_(network, first, second)


def _merge(network: Network, operation: Operation) -> None:
    pool_first = operation.options.get("pool_first") is True
    used = used_paths(network.graph.nodes)
    for cuts in operation.options["rounds"]:
        simplify_(network, pool_first=pool_first)
        used |= used_paths(network.graph.nodes)
        for cut in cuts:
            nodes = dict(enumerate(network.graph.nodes))
            start, end, layers = nodes[cut["start"]], nodes[cut["end"]], _layers(cut["layers"])
            if layers or cut["flatten"]:
                replace_stretch_(network, start, end, layers, flatten=cut["flatten"])
            else:
                end.replace_all_uses_with(start)
        used |= used_paths(network.graph.nodes)
        remove_dead_(network, used)
    simplify_(network, pool_first=pool_first)
    remove_dead_(network, used)
    fix_lines(network)


_REPLAYS = {
    "linearize": _linearize, "drop": _drop, "collapse": _collapse, "pad": _pad, "merge": _merge,
}  # fmt: skip


def _layers(specs: Any) -> list[tuple[str, nn.Module]]:
    layers = []
    for path, spec in specs:
        options: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in spec.items()
        }
        make = _LAYERS[str(options.pop("type"))]
        layers.append((str(path), make(**options)))
    return layers


# ---------------------------------------------------------------------- base and weights


def _capture_base(plan: Plan, description: Mapping[str, Any], model: nn.Module | None) -> Network:
    if model is None:
        if not plan.base:
            raise PlanError(
                "the saved network does not say how its base model is built: give it as model="
            )
        spec = parse_spec(plan.base)
        options = {k: v for k, v in spec.kwargs.items() if k not in _DOWNLOADS}
        model = load_model(type(spec)(spec.kind, spec.name, options))
    try:
        inputs = description["inputs"]
        leaves = [
            leaf["value"]
            if "value" in leaf
            else torch.zeros(leaf["shape"], dtype=getattr(torch, leaf["dtype"]))
            for leaf in inputs["leaves"]
        ]
        args, kwargs = pytree.tree_unflatten(leaves, pytree.treespec_loads(inputs["structure"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanError(f"{PLAN_FILE} does not describe the inputs: the file is damaged") from error
    return capture(model, tuple(args), example_kwargs=kwargs).copy()


def _load_weights(network: Network, folder: Path, description: Mapping[str, Any]) -> None:
    path = folder / WEIGHTS_FILE
    if not path.exists() or file_hash(path) != description.get("weights_sha256"):
        raise CheckpointError(f"'{path}' is missing, damaged or was changed")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {error}") from error
    for alias, name in description.get("tied", {}).items():
        tensors[alias] = tensors[name]
    kinds = {v.dtype for v in tensors.values() if v.dtype.is_floating_point}
    if len(kinds) == 1:
        network.to(kinds.pop())
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"'{path}' does not belong to this network: {reason}") from error
    if description.get("channels_last") is True:
        make_channels_last(network)
