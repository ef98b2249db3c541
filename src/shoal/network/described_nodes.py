"""The nodes of a graph as JSON values, and back.

Reading takes operators from the operator table alone. Names go into the forward pass's code, so
those that could be anything else than a name are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from shoal.errors import PlanError
from shoal.network.ops import function_named, name_of
from shoal.schema import MOST_ELEMENTS


def plain_name(constant: Any) -> str:
    """Return the name of a constant of torch, such as a type, without the library's."""
    return str(constant).removeprefix("torch.")


def _constants(kind: type) -> dict[str, Any]:
    return {plain_name(value): value for value in vars(torch).values() if isinstance(value, kind)}


DTYPES = _constants(torch.dtype)
# ATen's functions that make a tensor of the sizes that they are given.
_MAKERS = {
    "arange", "empty", "eye", "full", "hamming_window", "hann_window", "linspace", "new_empty",
    "new_empty_strided", "new_full", "new_ones", "new_zeros", "one_hot", "ones", "rand", "randn",
    "repeat", "tril_indices", "triu_indices", "zeros",
}  # fmt: skip
_META = ("path", "shape", "dtype", "block", "opaque")
PATHS = re.compile(r"[^\"\\\x00-\x1f]*")
"""What can be the path of a module or tensor: it goes into code between quotes."""

# What JSON lacks: the type, how a value of it is written, and how it is read.
_FORMS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "tuple": (tuple, list, tuple),
    "dict": (dict, lambda value: [list(item) for item in value.items()], dict),
    "slice": (slice, lambda value: [value.start, value.stop, value.step], lambda v: slice(*v)),
    "float": (float, str, float),  # infinity and NaN
    "device": (torch.device, str, torch.device),
    "ellipsis": (type(...), lambda value: True, lambda _: ...),
    "complex": (complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    "dtype": (torch.dtype, plain_name, DTYPES.__getitem__),
    "memory_format": (
        torch.memory_format, plain_name, _constants(torch.memory_format).__getitem__,
    ),
    "layout": (torch.layout, plain_name, _constants(torch.layout).__getitem__),
}  # fmt: skip


def describe_nodes(graph: fx.Graph) -> list[dict[str, Any]]:
    """Return the nodes of a graph in order; `PlanError` if one cannot be written."""
    return [_described(node) for node in graph.nodes]


def _described(node: fx.Node) -> dict[str, Any]:
    target: Any = node.target
    if node.op == "call_function":
        target = name_of(target)
        if target is None:
            raise PlanError(
                f"the network calls the operator '{node.target}', which cannot be written: "
                "register it with shoal.register_op"
            )
    entry = {"name": node.name, "op": node.op, "target": target}
    entry["args"] = [_written(value, node) for value in node.args]
    if node.kwargs:
        entry["kwargs"] = {key: _written(value, node) for key, value in node.kwargs.items()}
    meta = {key: node.meta[key] for key in _META if key in node.meta}
    if isinstance(meta.get("dtype"), torch.dtype):
        meta["dtype"] = plain_name(meta["dtype"])
    return {**entry, "meta": meta}


def _written(value: Any, node: fx.Node) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list):
        return [_written(child, node) for child in value]
    for kind, (written_type, write, _) in _FORMS.items():
        if isinstance(value, written_type):
            return {kind: _written(write(value), node)}
    raise PlanError(
        f"the operator '{node.target}' has an argument of the type {type(value).__name__}, which "
        "cannot be written"
    )


def read_nodes(entries: Sequence[Mapping[str, Any]]) -> fx.Graph:
    """Make a graph; the functions that it calls are in the operator table."""
    graph, made = fx.Graph(), dict[str, fx.Node]()
    for entry in entries:
        args = tuple(_read(value, made) for value in entry["args"])
        kwargs = {key: _read(value, made) for key, value in entry.get("kwargs", {}).items()}
        target = _target(entry, args, kwargs)
        node = graph.create_node(entry["op"], target, args, kwargs, name=entry["name"])
        node.meta = dict(entry["meta"])
        if "shape" in node.meta:
            node.meta["shape"] = tuple(node.meta["shape"])
        if "dtype" in node.meta:
            node.meta["dtype"] = DTYPES[node.meta["dtype"]]
        made[entry["name"]] = node
    return graph


def _target(entry: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    op, target = entry["op"], entry["target"]
    if not isinstance(target, str) or not all(k.isidentifier() for k in entry.get("kwargs", {})):
        raise PlanError(f"the node '{entry['name']}' is damaged")
    if op == "call_function":
        function = function_named(target)
        if function is None:
            raise PlanError(
                f"the network calls the operator '{target}', which is not registered here: "
                "import what registers it, or update shoal"
            )
        _check_sizes(entry["name"], target.split(".")[1:2], (*args, *kwargs.values()))
        if function is getattr and (len(args) != 2 or args[1] not in ("device", "dtype")):
            raise PlanError(f"the network reads '{args[-1]}' of a tensor, which is not allowed")
        return function
    if op in ("placeholder", "output") and target.isidentifier():
        return target
    if op in ("call_module", "get_attr") and PATHS.fullmatch(target):
        return target
    raise PlanError(f"the node '{entry['name']}' calls '{target}', which is no name")


def _check_sizes(name: str, packet: Sequence[str], args: tuple[Any, ...]) -> None:
    """Raise `PlanError` if a node makes a tensor of a size that no memory holds."""
    if not _MAKERS.issuperset(packet):
        return
    for value in args:
        sizes = value if isinstance(value, list | tuple) else [value]
        if math.prod(size for size in sizes if isinstance(size, int)) > MOST_ELEMENTS:
            raise PlanError(f"the node '{name}' makes a tensor larger than any memory")


def _read(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_read(child, nodes) for child in value]
    if not isinstance(value, dict):
        return value
    ((kind, data),) = value.items()
    if kind == "node":
        return nodes[data]
    if kind in _FORMS:
        return _FORMS[kind][2](_read(data, nodes))
    raise PlanError(f"a node has an argument of the kind '{kind}', which is unknown")
