"""A network as data: its graph as JSON in terms of the operator table, beside its tensors.

Reading a saved folder needs nothing else: neither the model's source nor its library. It calls
nothing that the operator table does not hold.
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
from torch import Tensor, fx, nn

from shoal.errors import CheckpointError, DamagedError, PlanError, ShoalError, one_line
from shoal.files import readable_errors, replace_folder
from shoal.network.about import described
from shoal.network.call_form import InputSpec, TensorSpec
from shoal.network.code_paths import paths_read
from shoal.network.described import Reader, Writer
from shoal.network.described_nodes import DTYPES, describe_nodes, plain_name, read_nodes
from shoal.network.input_sizes import Sizes
from shoal.network.network import Network, Plan
from shoal.network.raising import Opaque
from shoal.network.saved_form import SavedNetwork
from shoal.network.structures import tree_from_json, tree_to_json
from shoal.schema import conform
from shoal.sealed import KEY, check_seal, file_digest, parsed, read_text, seal
from shoal.user_paths import user_path

FORMAT = 2
NETWORK_FILE = "network.json"
WEIGHTS_FILE = "model.safetensors"
REMEDY = "copy the folder anew; in a run's folder, give the run's command again"
"""What to do about a damaged file of a network."""
WHOLE = "copy the whole folder, not a part of it"
"""What to do about a missing one."""


def save(network: Network, folder: str | Path) -> Path:
    """Save a network into a folder, replacing what an earlier save left there; return the folder.

    It is made if needed, and receives `network.json` and `model.safetensors`.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
        PlanError: `folder` holds something else than a saved network, or the network holds an
            operator that is not registered (`shoal.register_op`), or `network.meta` what JSON or
            one of its known keys cannot hold.

    Example:
        >>> import shoal, tempfile, torch
        >>> from torch import nn
        >>> net = shoal.capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.randn(2, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(path.name for path in shoal.save(net, folder).iterdir())
        ['model.safetensors', 'network.json']
    """
    path = user_path(folder)
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
    """Write a network into an existing folder, which the caller makes final; see `save`."""
    writer = Writer()
    description = {"format": FORMAT, **_described_by(network, writer), **_beside(network)}
    weights = folder / WEIGHTS_FILE
    save_file(writer.tensors, weights)
    description["weights_sha256"] = file_digest(weights)
    try:
        text = _one_entry_a_line(seal(description))
    except ValueError as error:
        raise PlanError(f"the network holds what JSON cannot hold: {error}") from error
    (folder / NETWORK_FILE).write_text(text, encoding="utf-8")


def _described_by(network: Network, writer: Writer) -> dict[str, Any]:
    """Return all that decides what a network computes, but for the tensors that `writer` holds."""
    return {
        "inputs": _describe_inputs(network.inputs),
        "outputs": tree_to_json(network._output_structure),
        "nodes": describe_nodes(network.graph),
        "modules": writer.modules(network),
    }


def _beside(network: Network) -> dict[str, Any]:
    """Return what else is known of a network: where it comes from, what was done, what it means."""
    return {
        "sites": {name: list(record) for name, record in network._site_records.items()},
        "opaque": [[o.name, o.path, o.op, o.reason] for o in network.opaque],
        "notes": list(network.notes),
        "plan": network.plan.to_dict(),
        "meta": described(network),
    }


def content_hash(network: Network) -> str:
    """Return a SHA-256 of what a network computes: its graph, its layers and their tensors.

    Networks that differ in how they came about, or in their names for sites, may have the same.
    Raises `PlanError` if an operator is not registered.
    """
    writer = Writer()
    text = json.dumps(_described_by(network, writer), sort_keys=True)
    return hashlib.sha256((text + tensors_hash(writer.tensors)).encode()).hexdigest()


def read_network(folder: Path) -> Network:
    """Read what `write_network` wrote; returns the network in eval mode, on the CPU.

    Raises:
        PlanError: `network.json` is damaged, holds what no network may, or names an operator that
            is not registered.
        CheckpointError: the weights are damaged, or another network's.
    """
    path, description = folder / NETWORK_FILE, _described_in(folder)
    tensors = read_weights(folder, description)
    network = Network()
    try:
        Reader(network, tensors).modules(description["modules"])
        network._keep(
            graph=read_nodes(description["nodes"]),
            plan=Plan.from_dict(description["plan"]),
            opaque=tuple(Opaque(*record) for record in description["opaque"]),
            notes=tuple(description["notes"]),
            meta=description["meta"],
            inputs=_read_inputs(description["inputs"]),
            _output_structure=tree_from_json(description["outputs"]),
            _site_records={name: (kind, p) for name, (kind, p) in description["sites"].items()},
        )
        network.recompile()
        _check_calls(network)
    except ShoalError:
        raise
    except Exception as error:  # PyTorch and Python fail in many ways at what no network is
        reason = one_line(f"{type(error).__name__}: {error}", 200)
        raise PlanError(f"'{path}' is damaged: {reason}: {REMEDY}") from error
    return network.eval()


def read_meta(folder: Path) -> dict[str, Any]:
    """Return what goes with the network of a folder, without making it; see `read_network`."""
    meta: dict[str, Any] = _described_in(folder)["meta"]
    return meta


def _described_in(folder: Path) -> dict[str, Any]:
    path = folder / NETWORK_FILE
    description = read_description(path, FORMAT)
    try:
        conform(SavedNetwork, description)
    except DamagedError as error:
        raise PlanError(f"'{path}' is damaged: {error}: {REMEDY}") from error
    return description


def _check_calls(network: Network) -> None:
    """Raise `PlanError` if a graph calls what is no layer, or reads what is no tensor or graph."""
    bodies = [module for module in network.modules() if isinstance(module, fx.GraphModule)]
    for root, graph in ((network._root, network.graph), *((body, body.graph) for body in bodies)):
        held = [node for node in graph.nodes if node.op in ("call_module", "get_attr")]
        for node in held:
            _check_held(root, node)
        # Python may read another name than the graph has, such as one in letters of another width.
        strange = paths_read(graph) - {str(node.target) for node in held}
        if strange:
            raise PlanError(f"the code reads '{min(strange)}', which its graph does not: {REMEDY}")


def _check_held(root: nn.Module, node: fx.Node) -> None:
    path = str(node.target)
    owner, _, name = path.rpartition(".")
    # By `get_submodule`, which refuses what is no module: a path may be that of a method.
    held = getattr(root.get_submodule(owner), name, None)
    if node.op == "call_module" and (not isinstance(held, nn.Module) or type(held) is nn.Module):
        raise PlanError(f"the network calls '{path}', which is no layer: {REMEDY}")
    if node.op == "get_attr" and not isinstance(held, Tensor | fx.GraphModule):
        raise PlanError(f"the network reads '{path}', which is no tensor: {REMEDY}")


def check_network(folder: Path) -> None:
    """Raise as `read_network` does if a file of the folder is not as it was written.

    The network itself is not made, so that this takes as long as reading its weights.
    """
    description = read_description(folder / NETWORK_FILE, FORMAT)
    check_weights(folder, description)


def read_description(path: Path, format: int) -> dict[str, Any]:
    """Return what a file that states its format, which is at most `format`, holds.

    Its checksum, if it has one, is checked and left out.
    """
    what = f"'{path}'"
    try:
        description = parsed(read_text(path), what)
        if not isinstance(description.get("format"), int):
            raise PlanError(f"'{path}' is not a network of shoal")
        if description["format"] > format:
            raise PlanError(
                f"'{path}' has format {description['format']} and this version of shoal reads up "
                f"to {format}: update shoal"
            )
        if KEY in description:
            check_seal(description, what)
    except DamagedError as error:
        raise PlanError(f"{error}: {REMEDY}") from error
    return {key: value for key, value in description.items() if key != KEY}


def state_hash(module: nn.Module) -> str:
    """Return a SHA-256 of all parameters and buffers by name."""
    return tensors_hash(module.state_dict())


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of tensors by name."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


def _describe_inputs(inputs: InputSpec) -> dict[str, Any]:
    def described(leaf: Any) -> dict[str, Any]:
        if isinstance(leaf, TensorSpec):
            return {"shape": list(leaf.shape), "dtype": plain_name(leaf.dtype)}
        if leaf is None or isinstance(leaf, (bool, int, float, str)):
            return {"value": leaf}
        raise PlanError(f"an input of the type {type(leaf).__name__} cannot be written")

    return {
        "structure": tree_to_json(inputs.structure),
        "keywords": list(inputs.keywords),
        "parameters": list(inputs.parameters),
        "leaves": [described(leaf) for leaf in inputs.leaves],
        "weights": None if inputs.weights is None else plain_name(inputs.weights),
        "fixed_sizes": [list(dims) for dims in inputs.sizes.fixed],
        "conditions": list(inputs.sizes.conditions),
    }


def _read_inputs(data: Mapping[str, Any]) -> InputSpec:
    def leaf(data: Mapping[str, Any]) -> Any:
        if "value" in data:
            return data["value"]
        return TensorSpec(tuple(map(int, data["shape"])), DTYPES[data["dtype"]])

    leaves = tuple(map(leaf, data["leaves"]))
    fixed = tuple(tuple(map(int, dims)) for dims in data.get("fixed_sizes", ()))
    for spec, dims in zip(leaves, fixed, strict=bool(fixed)):
        rank = len(spec.shape) if isinstance(spec, TensorSpec) else 0
        if not all(0 < d < rank for d in dims):
            raise PlanError(f"the sizes {list(dims)} of an input are fixed, which it does not have")
    return InputSpec(
        tree_from_json(data["structure"]),
        tuple(map(str, data["keywords"])),
        tuple(map(str, data["parameters"])),
        leaves,
        None if data["weights"] is None else DTYPES[data["weights"]],
        Sizes(fixed, tuple(map(str, data.get("conditions", ())))),
    )


def read_weights(folder: Path, description: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a saved network's tensors; raises `CheckpointError` if they are not as described."""
    check_weights(folder, description)
    path = folder / WEIGHTS_FILE
    try:
        # In memory of PyTorch's own, for its alignment: kernels round differently elsewhere.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {error}: {REMEDY}") from error


def check_weights(folder: Path, description: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless a network's file of weights is the one it was saved with."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing: {WHOLE}")
    if file_digest(path) != description.get("weights_sha256"):
        raise CheckpointError(
            f"'{path}' is damaged or was changed: its checksum is not the one it was saved with: "
            f"{REMEDY}"
        )


def _one_entry_a_line(description: Mapping[str, Any]) -> str:
    """Return JSON text that people can read and compare: each node and module has its line."""

    def text(value: Any) -> str:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)

    def entry(key: str, value: Any) -> str:
        if not value or key not in ("nodes", "modules", "sites"):
            return text(value)
        if isinstance(value, list):
            return "[\n" + ",\n".join(f"  {text(child)}" for child in value) + "\n]"
        children = (f"  {text(name)}: {text(child)}" for name, child in value.items())
        return "{\n" + ",\n".join(children) + "\n}"

    parts = (f'"{key}": {entry(key, value)}' for key, value in description.items())
    return "{\n" + ",\n".join(parts) + "\n}\n"
