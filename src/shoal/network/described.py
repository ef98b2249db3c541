"""Nodes, modules and tensors of a network as JSON values, and back.

Reading takes operators from the operator table alone. Names go into the forward pass's code, so
those that could be anything else than a name are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from shoal.errors import CheckpointError, PlanError
from shoal.network.modules import SharedPReLU
from shoal.network.ops import function_named, name_of, op_of, type_named

__all__ = ["DTYPES", "Reader", "Writer"]

DTYPES = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}
_NAMED: dict[str, dict[str, Any]] = {
    "dtype": DTYPES,
    "memory_format": {
        str(value).removeprefix("torch."): value
        for value in (torch.contiguous_format, torch.preserve_format, torch.channels_last,
                      torch.channels_last_3d)
    },
    "layout": {"strided": torch.strided},
}  # fmt: skip
_ATTRIBUTES = ("device", "dtype")  # what a graph reads of a tensor by getattr
_META = ("path", "shape", "dtype", "block", "opaque")
_PATH = re.compile(r"[^\"\\\x00-\x1f]*")


class Writer:
    """Describes one network and gathers its tensors.

    Attributes:
        tensors: what the descriptions name, each memory once.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._paths: dict[int, str] = {}  # of modules, by id
        self._names: dict[int, str] = {}  # of tensors, by id
        self._memories: dict[tuple[Any, ...], str] = {}

    # ------------------------------------------------------------------ modules

    def modules(self, root: nn.Module) -> dict[str, Any]:
        """Return all modules by path, parents first; "" is the root, of which only tensors count.

        Raises:
            PlanError: a type of module is not registered.
        """
        entries: dict[str, Any] = {}
        self._walk(root, "", entries)
        for path, entry in entries.items():
            if isinstance(entry.get("owner"), nn.Module):
                entries[path] = {**entry, "owner": self._paths[id(entry["owner"])]}
        return entries

    def _walk(self, module: nn.Module, path: str, entries: dict[str, Any]) -> None:
        if id(module) in self._paths:
            entries[path] = {"same": self._paths[id(module)]}
            return
        self._paths[id(module)] = path
        entry = {} if not path or type(module) is nn.Module else self._layer(module, path)
        prefix = f"{path}." if path else ""
        for key, held in _held(module).items():
            if held:
                entry[key] = {
                    name: None if value is None else self._tensor(prefix + name, value)
                    for name, value in held.items()
                }
        for name in sorted(module._non_persistent_buffers_set & set(module._buffers)):
            if entry["buffers"][name] is not None:
                entry["buffers"][name]["persistent"] = False
        entries[path] = entry
        for name, child in module._modules.items():
            if child is not None:
                self._walk(child, prefix + name, entries)

    def _layer(self, module: nn.Module, path: str) -> dict[str, Any]:
        if isinstance(module, fx.GraphModule):
            return {"nodes": self.nodes(module.graph)}
        if isinstance(module, SharedPReLU):
            return {"type": "SharedPReLU", "owner": module.owner}
        name = name_of(type(module))
        if name is None:
            raise PlanError(
                f"'{path}' is a {type(module).__name__}, which cannot be written: register it with "
                "shoal.register_op"
            )
        op = op_of(module)
        if op.write is not None:
            return {"type": name, **op.write(module)}
        values = {key: getattr(module, key) for key in op.arguments}
        if "bias" in values:
            values["bias"] = values["bias"] is not None
        return {"type": name, **{k: list(v) if isinstance(v, tuple) else v
                                 for k, v in values.items()}}  # fmt: skip

    def _tensor(self, name: str, value: Tensor) -> dict[str, Any]:
        """Describe a tensor; one that is or shares another's memory is not stored again."""
        if id(value) in self._names:
            return {"same": self._names[id(value)]}
        self._names[id(value)] = name
        entry: dict[str, Any] = {}
        if isinstance(value, nn.Parameter) and not value.requires_grad:
            entry["frozen"] = True
        strides = value.stride()
        memory = (value.data_ptr(), value.shape, strides, value.dtype)
        if value.numel() and memory in self._memories:
            return {**entry, "memory": self._memories[memory]}
        self._memories[memory] = name
        dense = sum((n - 1) * s for n, s in zip(value.shape, strides, strict=True)) < value.numel()
        if dense and strides != torch.empty(value.shape, device="meta").stride():
            entry["strides"] = list(strides)
        self.tensors[name] = value.detach().cpu().contiguous().clone()
        return entry

    # ------------------------------------------------------------------ nodes

    def nodes(self, graph: fx.Graph) -> list[dict[str, Any]]:
        """Return the nodes of a graph in order.

        Raises:
            PlanError: a function is not registered, or an argument is of a type without a form.
        """
        return [self._node(node) for node in graph.nodes]

    def _node(self, node: fx.Node) -> dict[str, Any]:
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
            meta["dtype"] = str(meta["dtype"]).removeprefix("torch.")
        return {**entry, "meta": meta}


def _held(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the very dictionaries that hold a module's tensors."""
    return {"parameters": module._parameters, "buffers": module._buffers}


# What JSON lacks: the type, how a value of it is written, and how it is read.
_FORMS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "tuple": (tuple, list, tuple),
    "dict": (dict, lambda value: [list(item) for item in value.items()], dict),
    "slice": (slice, lambda value: [value.start, value.stop, value.step], lambda v: slice(*v)),
    "float": (float, str, float),  # infinity and NaN
    "device": (torch.device, str, torch.device),
    "ellipsis": (type(...), lambda value: True, lambda _: ...),
    "complex": (complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
}


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
    for kind, names in _NAMED.items():
        for name, known in names.items():
            if value is known:
                return {kind: name}
    raise PlanError(
        f"the operator '{node.target}' has an argument of the type {type(value).__name__}, which "
        "cannot be written"
    )


class Reader:
    """Makes the modules and the graph of one network from their descriptions.

    Args:
        root: receives the modules.
        tensors: by name; each is used.
    """

    def __init__(self, root: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self.root = root
        self.tensors = tensors
        self._modules: dict[str, nn.Module] = {}
        self._made: dict[str, Tensor] = {}
        self._used: set[str] = set()

    # ------------------------------------------------------------------ modules

    def modules(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Make all modules.

        Raises:
            PlanError: a type of module is not registered here.
            CheckpointError: a tensor is missing, is not used, or has another shape than its layer.
        """
        for path, entry in entries.items():
            module = self.root if not path else self._module(path, entry)
            self._modules[path] = module
            if path:
                parent, _, name = path.rpartition(".")
                self._modules[parent]._modules[name] = module
            if "same" not in entry:
                self._fill(module, path, entry)
        for path, entry in entries.items():
            if "owner" in entry:
                self._modules[path].__dict__["_owner"] = self._modules[entry["owner"]]
        unused = set(self.tensors) - self._used
        if unused:
            raise CheckpointError(
                f"the weights hold '{min(unused)}', which the network does not have"
            )

    def _module(self, path: str, entry: Mapping[str, Any]) -> nn.Module:
        if not _PATH.fullmatch(path):
            raise PlanError(f"'{path}' cannot be the name of a module")
        if "same" in entry:
            return self._modules[entry["same"]]
        if "nodes" in entry:
            body = fx.GraphModule(nn.Module(), fx.Graph())
            body.graph = self.nodes(entry["nodes"])
            return body
        if "type" not in entry:
            return nn.Module()
        name = entry["type"]
        options = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in entry.items()
            if key not in ("type", "parameters", "buffers")
        }
        if name == "SharedPReLU":
            return SharedPReLU(cast(nn.PReLU, None))
        kind = type_named(name)
        if kind is None:
            raise PlanError(
                f"'{path}' is a {name}, which is not registered here: import what registers it, or "
                "update shoal"
            )
        with torch.device("meta"):
            return (op_of(kind).read or kind)(**options)

    def _fill(self, module: nn.Module, path: str, entry: Mapping[str, Any]) -> None:
        """Give a module its tensors, in the order in which it had them."""
        prefix = f"{path}." if path else ""
        for key, own in _held(module).items():
            described = entry.get(key, {})
            for name, value in own.items():
                absent = described.get(name) is None
                if key == "buffers":  # a norm that is written as a function counts no batches
                    absent = name not in described
                if value is not None and absent:
                    raise CheckpointError(f"'{prefix}{name}' is missing")
            shapes = {name: value.shape for name, value in own.items() if value is not None}
            own.clear()
            for name, data in described.items():
                if not _PATH.fullmatch(name) or "." in name:
                    raise PlanError(f"'{name}' cannot be the name of a tensor")
                own[name] = None
                if data is not None:
                    shape = shapes.get(name)
                    own[name] = self._tensor(prefix + name, data, shape, key == "parameters")
        module._non_persistent_buffers_set = {
            name
            for name, data in entry.get("buffers", {}).items()
            if data is not None and data.get("persistent") is False
        }

    def _tensor(
        self, name: str, data: Mapping[str, Any], shape: torch.Size | None, parameter: bool
    ) -> Tensor:
        if "same" in data:
            value = self._made[data["same"]]
        elif "memory" in data:
            value = self._made[data["memory"]].detach()
        elif name not in self.tensors:
            raise CheckpointError(f"'{name}' is missing")
        else:
            self._used.add(name)
            value = _strided(self.tensors[name], data.get("strides"))
        if shape is not None and shape != value.shape:
            raise CheckpointError(
                f"'{name}' is {list(value.shape)} in the file and {list(shape)} in its layer"
            )
        if parameter and not isinstance(value, nn.Parameter):
            value = nn.Parameter(value, requires_grad=data.get("frozen") is not True)
        self._made[name] = value
        return value

    # ------------------------------------------------------------------ nodes

    def nodes(self, entries: Sequence[Mapping[str, Any]]) -> fx.Graph:
        """Make a graph; the functions that it calls are in the operator table.

        Raises:
            PlanError: an operator is not registered here, or a name is none.
        """
        graph, made = fx.Graph(), dict[str, fx.Node]()
        for entry in entries:
            args = tuple(_read(value, made) for value in entry["args"])
            kwargs = {key: _read(value, made) for key, value in entry.get("kwargs", {}).items()}
            target = self._target(entry, args)
            node = graph.create_node(entry["op"], target, args, kwargs, name=entry["name"])
            node.meta = dict(entry["meta"])
            if "shape" in node.meta:
                node.meta["shape"] = tuple(node.meta["shape"])
            if "dtype" in node.meta:
                node.meta["dtype"] = DTYPES[node.meta["dtype"]]
            made[entry["name"]] = node
        return graph

    def _target(self, entry: Mapping[str, Any], args: tuple[Any, ...]) -> Any:
        op, target = entry["op"], entry["target"]
        if not isinstance(target, str) or not all(
            k.isidentifier() for k in entry.get("kwargs", {})
        ):
            raise PlanError(f"the node '{entry['name']}' is damaged")
        if op == "call_function":
            function = function_named(target)
            if function is None:
                raise PlanError(
                    f"the network calls the operator '{target}', which is not registered here: "
                    "import what registers it, or update shoal"
                )
            if function is getattr and (len(args) != 2 or args[1] not in _ATTRIBUTES):
                raise PlanError(f"the network reads '{args[-1]}' of a tensor, which is not allowed")
            return function
        if op in ("placeholder", "output") and target.isidentifier():
            return target
        if op in ("call_module", "get_attr") and _PATH.fullmatch(target):
            return target
        raise PlanError(f"the node '{entry['name']}' calls '{target}', which is no name")


def _strided(value: Tensor, strides: Sequence[int] | None) -> Tensor:
    """Return a tensor with the strides that it had, of which some kernels choose."""
    if strides is None:
        return value
    span = sum((n - 1) * s for n, s in zip(value.shape, strides, strict=True))
    if span >= value.numel() or min(strides) < 0:
        raise PlanError("a tensor's strides are damaged")
    return torch.empty_strided(value.shape, strides, dtype=value.dtype).copy_(value)


def _read(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_read(child, nodes) for child in value]
    if not isinstance(value, dict):
        return value
    ((kind, data),) = value.items()
    if kind == "node":
        return nodes[data]
    if kind in _NAMED:
        return _NAMED[kind][data]
    if kind in _FORMS:
        return _FORMS[kind][2](_read(data, nodes))
    raise PlanError(f"a node has an argument of the kind '{kind}', which is unknown")
