"""A network as data: its graph as JSON in terms of the operator table, beside its tensors.

A saved folder holds `network.json` and `model.safetensors`. Reading it needs nothing else: neither
the model's source nor its library. It calls nothing that the operator table does not hold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shoal.errors import CheckpointError, PlanError
from shoal.files import readable_errors, replace_folder
from shoal.network.described import DTYPES, Reader, Writer
from shoal.network.network import InputSpec, Network, TensorSpec
from shoal.network.plan import Plan
from shoal.network.raising import Opaque
from shoal.network.tree import tree_from_json, tree_to_json

__all__ = [
    "NETWORK_FILE", "WEIGHTS_FILE", "file_hash", "is_saved", "read_description", "read_network",
    "read_weights", "save", "state_hash", "write_network",
]  # fmt: skip

FORMAT = 2
NETWORK_FILE = "network.json"
WEIGHTS_FILE = "model.safetensors"


def save(network: Network, folder: str | Path) -> Path:
    """Save a network into a folder, replacing what an earlier save left there.

    Args:
        network: the network; it is left as it is.
        folder: made if needed. It receives `network.json` and `model.safetensors`.

    Returns:
        The folder.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
        PlanError: `folder` holds something else than a saved network, or the network holds an
            operator that is not registered (`shoal.register_op`).

    Example:
        >>> import shoal, tempfile, torch
        >>> from torch import nn
        >>> net = shoal.capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.randn(2, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(path.name for path in shoal.save(net, folder).iterdir())
        ['model.safetensors', 'network.json']
    """
    path = Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise PlanError(f"'{path}' is a file: give a folder to save into")
    if path.is_dir() and any(path.iterdir()) and not is_saved(path):
        raise PlanError(f"'{path}' holds other files: save into an empty or a new folder")
    with readable_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_folder(path, lambda temporary: write_network(network, temporary))
    return path


def is_saved(folder: Path) -> bool:
    """Return whether a folder holds a saved network, of this format or of an earlier one."""
    return (folder / NETWORK_FILE).exists() or (folder / "plan.json").exists()


def write_network(network: Network, folder: Path) -> None:
    """Write a network into an existing folder, which the caller makes final.

    Raises:
        PlanError: it holds an operator that is not registered.
    """
    writer = Writer()
    modules = writer.modules(network)
    nodes = writer.nodes(network.graph)
    weights = folder / WEIGHTS_FILE
    save_file(writer.tensors, weights)
    description = {
        "format": FORMAT,
        "inputs": _describe_inputs(network.inputs),
        "outputs": tree_to_json(network._output_structure),
        "nodes": nodes,
        "modules": modules,
        "sites": {name: list(record) for name, record in network._site_records.items()},
        "opaque": [[o.name, o.path, o.op, o.reason] for o in network.opaque],
        "notes": list(network.notes),
        "plan": network.plan.to_dict(),
        "meta": network.meta,
        "weights_sha256": file_hash(weights),
    }
    (folder / NETWORK_FILE).write_text(_one_entry_a_line(description), encoding="utf-8")


def read_network(folder: Path) -> Network:
    """Read what `write_network` wrote; returns the network in eval mode, on the CPU.

    Raises:
        PlanError: the folder holds no network, it is damaged, or it needs an operator that is not
            registered here.
        CheckpointError: the weights are missing, damaged, or those of another network.
    """
    path = folder / NETWORK_FILE
    description = read_description(path, FORMAT)
    tensors = read_weights(folder, description)
    try:
        network = _network(description, tensors)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PlanError(f"'{path}' is damaged: {type(error).__name__}: {reason}") from error
    return network.eval()


def read_description(path: Path, format: int) -> dict[str, Any]:
    """Return the JSON object in a file that states its format.

    Raises:
        PlanError: there is no such file, it is damaged, or of a later format than `format`.
    """
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise PlanError(f"'{path}' is damaged and cannot be read: {error}") from error
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise PlanError(f"'{path}' is not a network of shoal")
    if description["format"] > format:
        raise PlanError(
            f"'{path}' has format {description['format']} and this version of shoal reads up to "
            f"{format}: update shoal"
        )
    return description


def state_hash(module: nn.Module) -> str:
    """Return a SHA-256 of all parameters and buffers by name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------- parts


def _network(description: Mapping[str, Any], tensors: dict[str, Tensor]) -> Network:
    network = Network()
    reader = Reader(network, tensors)
    reader.modules(description["modules"])
    inputs = description["inputs"]
    network._keep(
        graph=reader.nodes(description["nodes"]),
        plan=Plan.from_dict(description["plan"]),
        opaque=tuple(Opaque(*map(str, record)) for record in description["opaque"]),
        notes=tuple(map(str, description["notes"])),
        meta=dict(description["meta"]),
        inputs=InputSpec(
            tree_from_json(inputs["structure"]),
            tuple(map(str, inputs["keywords"])),
            tuple(map(str, inputs["parameters"])),
            tuple(_leaf(leaf) for leaf in inputs["leaves"]),
            None if inputs["weights"] is None else DTYPES[inputs["weights"]],
        ),
        _output_structure=tree_from_json(description["outputs"]),
        _site_records={k: (str(kind), str(p)) for k, (kind, p) in description["sites"].items()},
    )
    network.recompile()
    return network


def _describe_inputs(inputs: InputSpec) -> dict[str, Any]:
    def described(leaf: Any) -> dict[str, Any]:
        if isinstance(leaf, TensorSpec):
            return {"shape": list(leaf.shape), "dtype": _dtype_name(leaf.dtype)}
        if leaf is None or isinstance(leaf, (bool, int, float, str)):
            return {"value": leaf}
        raise PlanError(f"an input of the type {type(leaf).__name__} cannot be written")

    return {
        "structure": tree_to_json(inputs.structure),
        "keywords": list(inputs.keywords),
        "parameters": list(inputs.parameters),
        "leaves": [described(leaf) for leaf in inputs.leaves],
        "weights": None if inputs.weights is None else _dtype_name(inputs.weights),
    }


def _leaf(data: Mapping[str, Any]) -> Any:
    if "value" in data:
        return data["value"]
    return TensorSpec(tuple(map(int, data["shape"])), DTYPES[data["dtype"]])


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def read_weights(folder: Path, description: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a saved network's tensors; raises `CheckpointError` if they are not as described."""
    path = folder / WEIGHTS_FILE
    if not path.exists():
        raise CheckpointError(f"'{path}' is missing: copy the whole folder, not a part of it")
    if file_hash(path) != description.get("weights_sha256"):
        raise CheckpointError(
            f"'{path}' is damaged or was changed: its checksum is not the one it was saved with"
        )
    try:
        # In memory of PyTorch's own, for its alignment: kernels round differently elsewhere.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {error}") from error


def _one_entry_a_line(description: Mapping[str, Any]) -> str:
    """Return JSON text that people can read and compare: each node and module has its line."""

    def text(value: Any) -> str:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)

    parts = []
    for key, value in description.items():
        if value and key == "nodes":
            lines = ",\n".join(f"  {text(entry)}" for entry in value)
            parts.append(f'"{key}": [\n{lines}\n]')
        elif value and key in ("modules", "sites"):
            lines = ",\n".join(f"  {text(name)}: {text(entry)}" for name, entry in value.items())
            parts.append(f'"{key}": {{\n{lines}\n}}')
        else:
            parts.append(f'"{key}": {text(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"
