"""The modules and tensors of a network as JSON values, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from shoal.errors import CheckpointError, PlanError
from shoal.network.described_nodes import PATHS, describe_nodes, read_nodes
from shoal.network.modules import SharedPReLU
from shoal.network.ops import name_of, op_of, type_named

MOST_MODULES = 10**6
"""That a walk over a network meets; one that several hold is met in each."""


def _held(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the very dictionaries that hold a module's tensors."""
    return {"parameters": module._parameters, "buffers": module._buffers}


# ---------------------------------------------------------------------- writing


class Writer:
    """Describes modules and gathers their tensors in `tensors`, each memory once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}  # of tensors, by id
        self._memories: dict[tuple[Any, ...], str] = {}

    def modules(self, root: nn.Module) -> dict[str, Any]:
        """Return all modules by path, parents first; of the root, "", only tensors count."""
        paths = {id(module): path for path, module in root.named_modules()}
        entries: dict[str, Any] = {}
        waiting = [("", root)]
        while waiting:
            path, module = waiting.pop()
            if paths[id(module)] != path:
                entries[path] = {"same": paths[id(module)]}
                continue
            if isinstance(module, SharedPReLU):
                entry = {"type": "SharedPReLU", "owner": paths[id(module.owner)]}
            else:
                entry = {} if not path or type(module) is nn.Module else _layer(module, path)
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
            children = [(prefix + name, child) for name, child in module._modules.items()]
            waiting += [(path, child) for path, child in reversed(children) if child is not None]
        return entries

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
        usual = torch.empty(value.shape, device="meta").stride()
        if strides != usual and _is_dense(value.shape, strides):
            entry["strides"] = list(strides)
        self.tensors[name] = value.detach().cpu().contiguous().clone()
        return entry


def _layer(module: nn.Module, path: str) -> dict[str, Any]:
    if isinstance(module, fx.GraphModule):
        return {"nodes": describe_nodes(module.graph)}
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
    lists = {key: list(value) for key, value in values.items() if isinstance(value, tuple)}
    return {"type": name, **values, **lists}


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return how far a tensor's last entry lies from its first in memory."""
    return sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a tensor's entries fill their memory, each at a place of its own."""
    filled = 1
    for stride, n in sorted((s, n) for n, s in zip(shape, strides, strict=True) if n > 1):
        if stride != filled:
            return False
        filled *= n
    return True


# ---------------------------------------------------------------------- reading


class Reader:
    """Makes the modules of one network, below `root`, from their descriptions."""

    def __init__(self, root: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self.root = root
        self.tensors = tensors  # by name; each is used
        self._modules: dict[str, nn.Module] = {}
        self._made: dict[str, Tensor] = {}
        self._used: set[str] = set()

    def modules(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Make all modules; `CheckpointError` where a tensor is missing, left over or misshapen."""
        for path, entry in entries.items():
            self._modules[path] = module = self._module(path, entry) if path else self.root
            if path:
                parent, _, name = path.rpartition(".")
                self._modules[parent]._modules[name] = module
            if "same" not in entry:
                self._fill(module, path, entry)
        _check_sharing(self.root)
        for path, entry in entries.items():
            if "owner" in entry:
                self._modules[path].__dict__["_owner"] = self._modules[entry["owner"]]
        unused = set(self.tensors) - self._used
        if unused:
            raise CheckpointError(
                f"the weights hold '{min(unused)}', which the network does not have"
            )

    def _module(self, path: str, entry: Mapping[str, Any]) -> nn.Module:
        if not PATHS.fullmatch(path):
            raise PlanError(f"'{path}' cannot be the name of a module")
        if "same" in entry:
            return self._modules[entry["same"]]
        if "nodes" in entry:
            body = fx.GraphModule(nn.Module(), fx.Graph())
            body.graph = read_nodes(entry["nodes"])
            return body
        if "type" not in entry:
            return nn.Module()
        if entry["type"] == "SharedPReLU":
            return SharedPReLU(cast(nn.PReLU, None))
        kind = type_named(entry["type"])
        if kind is None:
            raise PlanError(
                f"'{path}' is a {entry['type']}, which is not registered here: import what "
                "registers it, or update shoal"
            )
        options = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in entry.items()
            if key not in ("type", "parameters", "buffers")
        }
        op = op_of(kind)
        strange = set(options) - {"owner", *op.arguments}
        if op.read is None and strange:
            raise PlanError(f"'{path}' is a {entry['type']}, which takes no '{min(strange)}'")
        with torch.device("meta"):
            return (op.read or kind)(**options)

    def _fill(self, module: nn.Module, path: str, entry: Mapping[str, Any]) -> None:
        """Give a module its tensors, in the order in which it had them."""
        prefix = f"{path}." if path else ""
        for key, own in _held(module).items():
            described = entry.get(key, {})
            shapes = {name: value.shape for name, value in own.items() if value is not None}
            for name in shapes:
                # A norm that is written as a function counts no batches: its buffer is null.
                if name not in described or (described[name] is None and key == "parameters"):
                    raise CheckpointError(f"'{prefix}{name}' is missing")
            own.clear()
            for name, data in described.items():
                if not PATHS.fullmatch(name) or "." in name:
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


def _check_sharing(root: nn.Module) -> None:
    """Raise `PlanError` if modules hold themselves, or each other so often that no walk ends."""
    counts: dict[int, int] = {}  # of the modules that a walk from each one meets
    stack, above = [(root, iter(list(root.children())))], {id(root)}
    while stack:
        module, children = stack[-1]
        child = next(children, None)
        if child is None:
            stack.pop()
            above.discard(id(module))
            counts[id(module)] = 1 + sum(counts[id(held)] for held in module.children())
            if counts[id(module)] > MOST_MODULES:
                raise PlanError("the network's modules hold each other too often")
        elif id(child) in above:
            raise PlanError("a module of the network holds itself")
        elif id(child) not in counts:
            stack.append((child, iter(list(child.children()))))
            above.add(id(child))


def _strided(value: Tensor, strides: Sequence[int] | None) -> Tensor:
    """Return a tensor with the strides that it had, of which some kernels choose."""
    if strides is None:
        return value
    if _span(value.shape, strides) >= value.numel() or min(strides) < 0:
        raise PlanError("a tensor's strides are damaged")
    if not _is_dense(value.shape, strides):
        return value  # they overlap, as in older files those of an expanded buffer
    return torch.empty_strided(value.shape, strides, dtype=value.dtype).copy_(value)
