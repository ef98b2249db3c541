"""Load a network from a folder that `shoal.save` or a run wrote.

A folder of format 1 holds a plan, which is replayed on a capture of the base model, and weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.errors import CheckpointError, ConfigError, PlanError, ShoalError
from shoal.merge.padding import move_paddings_
from shoal.merge.peephole import fix_lines, simplify_
from shoal.models import load_model, parse_spec
from shoal.modes import make_channels_last
from shoal.network import Network, Operation, Plan, capture
from shoal.network.modules import Line, OnesChannel
from shoal.network.rewrite import remove_dead_, replace_stretch_, used_paths
from shoal.network.saving import (
    NETWORK_FILE,
    WEIGHTS_FILE,
    read_description,
    read_network,
    read_weights,
)
from shoal.surgery import FittedLine
from shoal.surgery.drop import drop_
from shoal.surgery.linearize import put_linear_

_PLAN_FILE = "plan.json"
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


def load(
    folder: str | Path,
    part: str | None = None,
    model: nn.Module | None = None,
    *,
    step: int | None = None,
) -> Network:
    """Load a network that `shoal.save` or a run wrote.

    It needs neither the model's source nor its library, and works wherever the folder lies.

    Args:
        folder: a saved folder, or a run's.
        part: what to take of a run: "merged" (the result to use, which None takes too), "best" (the
            result as it was trained, to train on), or a step such as "steps/003".
        model: the original model, for a folder of an early version of shoal whose model has no name
            such as "torchvision:resnet18"; its weights do not matter and it is left as it is.
        step: the number of a run's step, whose network is taken as it was trained: `shoal report`
            lists those on the front of accuracy against latency.

    Returns:
        The network in eval mode, on the CPU.

    Raises:
        PlanError: shoal did not make the folder, it is damaged, or it holds an operator that is
            not registered here.
        CheckpointError: the weights are damaged or do not fit.
        ConfigError: the run has no such step; says which there are.

    Example:
        >>> import shoal, tempfile, torch
        >>> inputs = torch.randn(8, 4)
        >>> from torch import nn
        >>> net = shoal.capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU()).eval(), inputs)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = shoal.load(shoal.save(net, folder))
        >>> torch.equal(again(inputs), net(inputs))
        True
    """
    path = Path(folder).expanduser()
    if step is not None:
        part = _part_of(path, step, part)
    if part is None and is_run(path):
        if not (path / "result.json").exists():
            raise PlanError(
                f"the run in '{path}' has no result yet: give its command again to finish it, or "
                f"take one of its steps, such as '{path / 'steps' / '000'}'"
            )
        part = "merged"
    path = path / (part or "")
    if not path.is_dir():
        raise PlanError(f"there is no folder '{path}': give one that shoal.save or a run made")
    if (path / NETWORK_FILE).exists():
        return read_network(path)
    if (path / _PLAN_FILE).exists():
        return _read_format1(path, model)
    raise PlanError(f"'{path}' has no {NETWORK_FILE}: it was not made by shoal.save or a run")


def _part_of(run: Path, step: int, part: str | None) -> str:
    """Return where the network of a step is in a run's folder."""
    if part is not None:
        raise ConfigError(f"part is '{part}' and step is {step}: give one of them")
    known = sorted(int(path.name) for path in (run / "steps").glob("[0-9]*"))
    if not known:
        raise ConfigError(f"'{run}' is no run with steps: give the --out folder of one, or no step")
    if step not in known:
        raise ConfigError(f"the run in '{run}' has no step {step}: it has {_spans(known)}")
    return f"steps/{step:03d}"


def _spans(known: list[int]) -> str:
    whole = known == list(range(known[0], known[-1] + 1))
    return f"{known[0]} to {known[-1]}" if whole else ", ".join(map(str, known))


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's, finished or not."""
    return (folder / "identity.json").exists() or (folder / "result.json").exists()


# ---------------------------------------------------------------------- format 1


def _read_format1(folder: Path, model: nn.Module | None) -> Network:
    """Replay the plan of a folder on a capture of its base model, and put in its weights."""
    description = read_description(folder / _PLAN_FILE, 1)
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
    """Do a plan's operations to a capture of its base model, in place; weights are placeholders."""
    for operation in plan.operations:
        try:
            _replay(network, operation)
        except PlanError:
            raise
        except ShoalError as error:
            raise PlanError(f"the plan does not fit this model: {error}") from error
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            what = f"the plan's operation '{operation.kind}'"
            raise PlanError(f"{what} is damaged: {error}") from error
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


def _layers(record: Mapping[str, Any]) -> list[tuple[str, nn.Module]]:
    specs = [(str(path), dict(spec)) for path, spec in record["layers"]]
    return [(path, _LAYERS[spec.pop("type")](**spec)) for path, spec in specs]


# ---------------------------------------------------------------------- base and weights


def _capture_base(plan: Plan, description: Mapping[str, Any], model: nn.Module | None) -> Network:
    if model is None:
        if not plan.base:
            raise PlanError(
                "the saved network does not say how its base model is built: give it as model="
            )
        spec = parse_spec(plan.base)
        if spec.kind in ("file", "module"):
            raise PlanError(
                f"the folder says that '{plan.base}' builds its base model, and code that a folder "
                "names is never run: build it yourself and give it as model="
            )
        options = {k: v for k, v in spec.kwargs.items() if k not in _DOWNLOADS}
        model = load_model(replace(spec, kwargs=options))
    try:
        inputs = description["inputs"]
        leaves = [
            leaf["value"]
            if "value" in leaf
            else torch.zeros(leaf["shape"], dtype=getattr(torch, leaf["dtype"]))
            for leaf in inputs["leaves"]
        ]
        args, kwargs = _unflattened(json.loads(inputs["structure"])[1], iter(leaves))
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise PlanError(
            f"{_PLAN_FILE} does not describe the inputs: the file is damaged"
        ) from error
    return capture(model, tuple(args), example_kwargs=kwargs).copy()


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
        tensors[alias] = tensors[name]
    kinds = {v.dtype for v in tensors.values() if v.dtype.is_floating_point}
    if len(kinds) == 1:
        network.to(kinds.pop())
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        path = folder / WEIGHTS_FILE
        raise CheckpointError(f"'{path}' does not belong to this network: {reason}") from error
    if description.get("channels_last") is True:
        make_channels_last(network)
