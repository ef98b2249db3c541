"""Save a network as plan and weights, and load it back: no pickle, no silent partial load.

A saved folder holds `plan.json` (what was done to which base model) and `model.safetensors`.
Loading builds the base model, captures it, replays the plan and loads the weights strictly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from shoal.errors import CheckpointError, PlanError
from shoal.files import readable_errors, replace_folder
from shoal.models import load_model, parse_spec
from shoal.modes import is_channels_last, make_channels_last
from shoal.network import Network, Plan, capture
from shoal.network.network import TensorSpec
from shoal.surgery import replay_

__all__ = ["load", "load_weights_", "save", "state_hash"]

FORMAT = 1
PLAN_FILE = "plan.json"
WEIGHTS_FILE = "model.safetensors"
_DOWNLOADS = ("pretrained", "weights")  # arguments of a base model that fetch weights


def save(network: Network, folder: str | Path) -> Path:
    """Save a network into a folder, replacing what a former save left there.

    Args:
        network: the network; it is left as it is.
        folder: made if needed. It receives `plan.json` and `model.safetensors`.

    Returns:
        The folder.

    Raises:
        RunError: the folder cannot be written, or the disk is full.
        PlanError: `folder` exists and holds something else than a saved network.
    """
    path = Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise PlanError(f"'{path}' is a file: give a folder to save into")
    if path.is_dir() and any(path.iterdir()) and not (path / PLAN_FILE).exists():
        raise PlanError(f"'{path}' holds other files: save into an empty or a new folder")
    with readable_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_folder(path, lambda temporary: write_network(network, temporary))
    return path


def write_network(network: Network, folder: Path) -> None:
    """Write plan and weights into an existing folder, which the caller makes final."""
    tensors, tied = _unique_tensors(network)
    weights = folder / WEIGHTS_FILE
    save_file(tensors, weights)
    description = {
        "format": FORMAT,
        **network.plan.to_dict(),
        "inputs": _describe_inputs(network),
        "tied": tied,
        "channels_last": is_channels_last(network),
        "weights_sha256": _file_hash(weights),
    }
    (folder / PLAN_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load(folder: str | Path, model: nn.Module | None = None) -> Network:
    """Load a network that `save` (or a run, in its `best` folder) wrote.

    Args:
        folder: a saved folder, or a run's folder, whose `best` is taken.
        model: the original model. Needed if it did not come from a name such as
            "torchvision:resnet18"; its weights do not matter and it is left as it is.

    Returns:
        The network in eval mode, on the CPU.

    Raises:
        PlanError: the folder is none of ours or damaged, or the model is another one.
        CheckpointError: the weights are damaged or do not fit.
    """
    path = Path(folder).expanduser()
    if not (path / PLAN_FILE).exists() and (path / "best" / PLAN_FILE).exists():
        path = path / "best"
    description = _read_plan(path)
    plan = Plan.from_dict(description)
    network = _capture_base(plan, description, model)
    if plan.fingerprint and network.plan.fingerprint != plan.fingerprint:
        raise PlanError(
            f"'{path}' was made from another model than {plan.base or type(model).__name__} as "
            "it is here: its layers or rectifiers differ"
        )
    replay_(network, plan)
    load_weights_(network, path, description)
    return network.eval()


def load_weights_(
    network: Network, folder: Path, description: Mapping[str, Any] | None = None
) -> None:
    """Load the weights of a saved folder into a network of the very same structure.

    Raises:
        CheckpointError: the file is damaged, or its tensors are not the network's.
    """
    description = description or _read_plan(folder)
    path = folder / WEIGHTS_FILE
    if not path.exists():
        raise CheckpointError(f"'{path}' is missing: copy the whole folder, not only {PLAN_FILE}")
    if _file_hash(path) != description.get("weights_sha256"):
        raise CheckpointError(
            f"'{path}' is damaged or was changed: its checksum is not the one in {PLAN_FILE}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {error}") from error
    for alias, name in description.get("tied", {}).items():
        tensors[alias] = tensors[name]
    _load_strictly(network, tensors, path)
    if description.get("channels_last") is True:  # as it was trained: twice as fast on many CPUs
        make_channels_last(network)


def state_hash(module: nn.Module) -> str:
    """Return a SHA-256 of all parameters and buffers by name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


# ---------------------------------------------------------------------- weights


def _unique_tensors(network: Network) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return each stored tensor once, and which further names share it."""
    first: dict[tuple[Any, ...], str] = {}
    tensors, tied = {}, {}
    for name, value in network.state_dict().items():
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and key in first:
            tied[name] = first[key]
            continue
        first[key] = name
        tensors[name] = value.detach().cpu().contiguous().clone()
    return tensors, tied


def _load_strictly(network: Network, tensors: dict[str, Tensor], path: Path) -> None:
    own = network.state_dict()
    missing, unexpected = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or unexpected:
        what = f"'{missing[0]}' is missing" if missing else f"'{unexpected[0]}' is unexpected"
        raise CheckpointError(
            f"'{path}' does not belong to this network: {what} "
            f"({len(missing)} missing, {len(unexpected)} unexpected in all)"
        )
    for name, value in tensors.items():
        if value.shape != own[name].shape:
            raise CheckpointError(
                f"'{path}' does not belong to this network: '{name}' is {list(own[name].shape)} "
                f"here and {list(value.shape)} in the file"
            )
    kinds = {v.dtype for v in tensors.values() if v.dtype.is_floating_point}
    if len(kinds) == 1:
        network.to(kinds.pop())
    network.load_state_dict(tensors)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------- the plan


def _read_plan(folder: Path) -> dict[str, Any]:
    path = folder / PLAN_FILE
    if not folder.is_dir():
        raise PlanError(f"there is no folder '{folder}': give one that shoal.save or a run made")
    begun, ended = (folder / "identity.json").exists(), (folder / "result.json").exists()
    if not path.exists() and begun and not ended:
        raise PlanError(
            f"the run in '{folder}' has no result yet: give its command again to finish it, or "
            f"take one of its steps, such as '{folder / 'steps' / '000'}'"
        )
    if not path.exists():
        raise PlanError(f"'{folder}' has no {PLAN_FILE}: it was not made by shoal.save or a run")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise PlanError(f"'{path}' is damaged and cannot be read: {error}") from error
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise PlanError(f"'{path}' is not a plan of shoal")
    if description["format"] > FORMAT:
        raise PlanError(
            f"'{path}' has format {description['format']} and this version of shoal reads up to "
            f"{FORMAT}: update shoal"
        )
    return description


def _capture_base(plan: Plan, description: Mapping[str, Any], model: nn.Module | None) -> Network:
    if model is None:
        if not plan.base:
            raise PlanError(
                "the saved network does not say how its base model is built: give it as model="
            )
        spec = parse_spec(plan.base)
        kwargs = {k: v for k, v in spec.kwargs.items() if k not in _DOWNLOADS}
        model = load_model(type(spec)(spec.kind, spec.name, kwargs))
    args, kwargs = _example_inputs(description)
    network = capture(model, args if args else kwargs, example_kwargs=kwargs if args else None)
    return network.copy()


def _describe_inputs(network: Network) -> dict[str, Any]:
    leaves: list[Any] = []
    for leaf in network.inputs.leaves:
        if isinstance(leaf, TensorSpec):
            leaves.append({"shape": list(leaf.shape), "dtype": str(leaf.dtype).split(".")[-1]})
        else:
            leaves.append({"value": leaf})
    return {"structure": pytree.treespec_dumps(network.inputs.structure), "leaves": leaves}


def _example_inputs(description: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        inputs = description["inputs"]
        structure = pytree.treespec_loads(inputs["structure"])
        leaves = [
            leaf["value"]
            if "value" in leaf
            else torch.zeros(leaf["shape"], dtype=getattr(torch, leaf["dtype"]))
            for leaf in inputs["leaves"]
        ]
        args, kwargs = pytree.tree_unflatten(leaves, structure)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanError(f"{PLAN_FILE} does not describe the inputs: the file is damaged") from error
    return tuple(args), dict(kwargs)
