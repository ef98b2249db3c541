"""Folders of format 1, of versions before 0.2: a plan, and weights.

The plan is replayed on a capture of its base model, which is built by its name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired

import torch
from pydantic import ConfigDict, with_config
from torch import nn
from typing_extensions import TypedDict

from shoal.errors import CheckpointError, DamagedError, PlanError, ShoalError, one_line
from shoal.merge.padding import move_paddings_
from shoal.merge.peephole import fix_lines, simplify_
from shoal.models import ModelSpec, load_model, parse_spec
from shoal.modes import make_channels_last
from shoal.network import Network, Operation, Plan, capture
from shoal.network.described_nodes import DTYPES
from shoal.network.modules import Line, OnesChannel
from shoal.network.rewrite import remove_dead_, replace_stretch_, used_paths
from shoal.network.saved_form import Done, ExampleTensor, ExampleValue
from shoal.network.saving import REMEDY, WEIGHTS_FILE, read_description, read_weights
from shoal.schema import conform
from shoal.surgery import FittedLine
from shoal.surgery.drop import drop_
from shoal.surgery.linearize import put_linear_

PLAN_FILE = "plan.json"
_DOWNLOADS = ("pretrained", "weights")  # arguments of a base model that fetch weights
_LARGEST = 2**16  # number that a folder may give to its base model: of classes, of channels
_MOST_ELEMENTS = 2**28  # of an input, or of all weights that a plan puts in
_PLACED = {"device", "dtype"}  # arguments of layers that no plan gives
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


@with_config(ConfigDict(extra="allow"))
class _Inputs(TypedDict):
    structure: str
    leaves: list[ExampleTensor | ExampleValue]


@with_config(ConfigDict(extra="allow"))
class _Format1(TypedDict):
    base: str | None
    fingerprint: str
    operations: list[Done]
    inputs: _Inputs
    tied: NotRequired[dict[str, str]]
    channels_last: NotRequired[bool]
    weights_sha256: str


def read_format1(folder: Path, model: nn.Module | None, *, trust: bool = False) -> Network:
    """Replay the plan of a folder on a capture of its base model, and put in its weights."""
    description = read_description(folder / PLAN_FILE, 1)
    try:
        conform(_Format1, description)
    except DamagedError as error:
        raise PlanError(f"'{folder / PLAN_FILE}' is damaged: {error}: {REMEDY}") from error
    plan = Plan.from_dict(description)
    network = _capture_base(plan, description, model, trust)
    if plan.fingerprint and network.plan.fingerprint != plan.fingerprint:
        raise PlanError(
            f"'{folder}' was made from another model than {plan.base or type(model).__name__} as "
            "it is here: its layers or rectifiers differ"
        )
    replay_(network, plan)
    _load_weights(network, folder, description)
    return network.eval()


def replay_(network: Network, plan: Plan) -> Network:
    """Do a plan's operations to a capture of its base model, in place; weights are placeholders."""
    elements = 0
    for operation in plan.operations:
        try:
            elements += _elements(operation)
            if elements > _MOST_ELEMENTS:
                raise PlanError(f"the plan holds {elements:,} weights: the file is damaged")
            _replay(network, operation)
        except PlanError:
            raise
        except ShoalError as error:
            raise PlanError(f"the plan does not fit this model: {error}") from error
        except Exception as error:  # PyTorch and Python fail in many ways at what no plan is
            what = f"the plan's operation '{operation.kind}'"
            raise PlanError(f"{what} is damaged: {one_line(str(error), 200)}") from error
    network.plan.operations[:] = plan.operations
    network.plan.base = plan.base
    return network


# ---------------------------------------------------------------------- operations


def _replay(network: Network, operation: Operation) -> None:
    match operation.kind:
        case "linearize":
            _linearize(network, operation)
        case "drop":
            drop_(network, operation.names)
        case "collapse":
            stretch = network.stretch(operation.names[0])
            like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
            layers = [(path, layer.to(like)) for path, layer in _layers(operation.options)]
            replace_stretch_(network, stretch.start, stretch.end, layers)
            remove_dead_(network)
        case "pad":
            move_paddings_(network, [operation.names])
        case "merge":
            _merge(network, operation)
        case unknown:
            raise PlanError(
                f"the plan holds the operation '{unknown}', which this version of shoal does not "
                "know: update shoal"
            )


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
            line = FittedLine(torch.ones(site.channels), torch.zeros(site.channels), 0.0)
        put_linear_(network, site, line)


def _merge(network: Network, operation: Operation) -> None:
    pool_first = operation.options.get("pool_first") is True
    used = used_paths(network.graph.nodes)
    for cuts in operation.options["rounds"]:
        simplify_(network, pool_first=pool_first)
        used |= used_paths(network.graph.nodes)
        for cut in cuts:
            nodes = dict(enumerate(network.graph.nodes))
            start, end, layers = nodes[cut["start"]], nodes[cut["end"]], _layers(cut)
            if layers or cut["flatten"]:
                replace_stretch_(network, start, end, layers, flatten=cut["flatten"])
            else:
                end.replace_all_uses_with(start)
        used |= used_paths(network.graph.nodes)
        remove_dead_(network, used)
    simplify_(network, pool_first=pool_first)
    remove_dead_(network, used)
    fix_lines(network)


def _elements(operation: Operation) -> int:
    """Return how many weights and buffers the layers of an operation have, without their memory."""
    cuts = [cut for cuts in operation.options.get("rounds", ()) for cut in cuts]
    records = [record for record in (operation.options, *cuts) if "layers" in record]
    with torch.device("meta"):
        layers = [layer for record in records for _, layer in _layers(record)]
    return sum(value.numel() for layer in layers for value in layer.state_dict().values())


def _layers(record: Mapping[str, Any]) -> list[tuple[str, nn.Module]]:
    specs = [(str(path), dict(spec)) for path, spec in record["layers"]]
    for path, spec in specs:
        if _PLACED & spec.keys():
            raise PlanError(f"the plan says where the layer '{path}' lies: the file is damaged")
    return [(path, _LAYERS[spec.pop("type")](**spec)) for path, spec in specs]


# ---------------------------------------------------------------------- base and weights


def _capture_base(
    plan: Plan, description: Mapping[str, Any], model: nn.Module | None, trust: bool
) -> Network:
    if model is None:
        if not plan.base:
            raise PlanError(
                "the saved network does not say how its base model is built: give it as model="
            )
        spec = parse_spec(plan.base)
        options = {k: v for k, v in spec.kwargs.items() if k not in _DOWNLOADS}
        spec = replace(spec, kwargs=options)
        if not trust and not _is_harmless(spec):
            raise PlanError(
                f"the folder says that '{plan.base}' builds its base model, and code that a folder "
                "names is run only where you say so: build the model yourself and give it as "
                "model=, or give trust=True if you trust the folder"
            )
        model = load_model(spec)
    try:
        inputs = description["inputs"]
        leaves = [
            leaf["value"]
            if "value" in leaf
            else torch.zeros(_small(leaf["shape"]), dtype=DTYPES[leaf["dtype"]])
            for leaf in inputs["leaves"]
        ]
        args, kwargs = _unflattened(json.loads(inputs["structure"])[1], iter(leaves))
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration, IndexError,
            RecursionError) as error:  # fmt: skip
        raise PlanError(f"{PLAN_FILE} does not describe the inputs: the file is damaged") from error
    return capture(model, tuple(args), example_kwargs=kwargs).copy()


def _is_harmless(spec: ModelSpec) -> bool:
    """Whether a base model is a library's own, made of numbers: a text could name a file."""
    library = spec.kind in ("shoal", "torchvision", "timm") and ":" not in spec.name
    numbers = spec.kwargs.values()
    return library and all(isinstance(n, int | float) and abs(n) <= _LARGEST for n in numbers)


def _small(shape: list[int]) -> list[int]:
    if math.prod(shape) > _MOST_ELEMENTS:
        raise ValueError("an input is too large")
    return shape


def _unflattened(spec: Mapping[str, Any], leaves: Iterator[Any]) -> Any:
    """Return a tree of tuples, lists and dicts; torch's reader would import what a file names."""
    if spec["type"] is None:
        return next(leaves)
    inner = [_unflattened(child, leaves) for child in spec["children_spec"]]
    if spec["type"] == "builtins.dict":
        return dict(zip(map(str, json.loads(spec["context"])), inner, strict=True))
    return {"builtins.tuple": tuple, "builtins.list": list}[spec["type"]](inner)


def _load_weights(network: Network, folder: Path, description: Mapping[str, Any]) -> None:
    tensors = read_weights(folder, description)
    for alias, name in description.get("tied", {}).items():
        if name not in tensors:
            raise CheckpointError(f"'{folder / WEIGHTS_FILE}' does not hold '{name}': {REMEDY}")
        tensors[alias] = tensors[name]
    kinds = {v.dtype for v in tensors.values() if v.dtype.is_floating_point}
    if len(kinds) == 1:
        network.to(kinds.pop())
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = one_line(str(error), 200)
        path = folder / WEIGHTS_FILE
        raise CheckpointError(f"'{path}' does not belong to this network: {reason}") from error
    if description.get("channels_last") is True:
        make_channels_last(network)
