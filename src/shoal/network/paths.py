"""Modules and tensors by their path, past attributes of a `Network` that have the same name."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, fx, nn


def tables_of(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Return the very dictionaries that hold a module's children and tensors."""
    return module._modules, module._parameters, module._buffers


def owner_of(root: nn.Module, path: str) -> nn.Module | None:
    """Return the module that holds, or would hold, what is at `path`; None where there is none."""
    module: nn.Module | None = root
    for name in path.split(".")[:-1]:
        module = None if module is None else module._modules.get(name)
    return module


def is_taken(root: nn.Module, path: str) -> bool:
    """Whether there is a module or a tensor at `path`."""
    owner, name = owner_of(root, path), path.rpartition(".")[2]
    return owner is not None and any(name in table for table in tables_of(owner))


def container_at(root: nn.Module, path: str) -> nn.Module:
    """Return the module at `path`, made empty if there is none."""
    module = root
    for name in path.split(".") if path else ():
        child = module._modules.get(name)
        if child is None:
            child = module._modules[name] = nn.Module()
        module = child
    return module


def lookup_tensor(module: nn.Module, path: str) -> Any:
    """Return the parameter, buffer or plain tensor attribute at `path`, or None."""
    value: Any = module
    for name in path.split("."):
        # A model's own children and tensors come before attributes of a `Network`.
        tables = tables_of(value) if isinstance(value, nn.Module) else ()
        held = [table for table in tables if name in table]
        value = held[0][name] if held else getattr(value, name, None)
    return value if isinstance(value, Tensor) else None


def hand_on(old: nn.Module, new: nn.Module, names: Iterable[str]) -> None:
    """Give a module another's tensors of these names, where it has nothing of that name itself."""
    for name in names:
        if any(name in table for table in tables_of(new)):
            continue
        if name in old._parameters:
            new._parameters[name] = old._parameters[name]
        elif name in old._buffers:
            new._buffers[name] = old._buffers[name]
            if name in old._non_persistent_buffers_set:
                new._non_persistent_buffers_set.add(name)


def read_of(graph: fx.Graph, root: nn.Module, module: nn.Module) -> list[str]:
    """Return the names of a module's own tensors that nodes of a graph read by themselves."""
    paths = (str(node.target) for node in graph.nodes if node.op == "get_attr")
    return [path.rpartition(".")[2] for path in paths if owner_of(root, path) is module]


def numbered(name: str, taken: Callable[[str], bool]) -> str:
    """Return `name`, or the first of name_1, name_2, … that is not taken."""
    further = (f"{name}_{n}" for n in itertools.count(1))
    return next(free for free in itertools.chain([name], further) if not taken(free))


class Skeleton:
    """The tree of modules, empty at first, that holds a model's own tensors below `root`.

    Tied modules stay one object, so that buffers they share stay shared when the network moves.
    """

    def __init__(self, model: nn.Module, root: nn.Module) -> None:
        self.model = model
        self.root = root
        self.originals: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self._fill(model, root, {id(model): root})
        paths = defaultdict(list)
        for path, module in root.named_modules(remove_duplicate=False):
            paths[id(module)].append(path)
        self.aliases = {path: same for same in paths.values() for path in same}

    def _fill(self, original: nn.Module, mirror: nn.Module, memo: dict[int, nn.Module]) -> None:
        mirror._parameters = dict(original._parameters)
        mirror._buffers = dict(original._buffers)
        mirror._non_persistent_buffers_set = set(original._non_persistent_buffers_set)
        for name, child in original._modules.items():
            if child is None:
                continue
            holds_tensors = any(True for _ in (*child.parameters(), *child.buffers()))
            known = memo.get(id(child)) if holds_tensors else None
            if known is None:
                known = memo[id(child)] = nn.Module()
                self._fill(child, known, memo)
            mirror._modules[name] = known

    def put(self, path: str, layer: nn.Module) -> None:
        """Put `layer` at a path, where it takes over the tensors of the original's module."""
        if path in self.aliases:
            container = container_at(self.root, path)
            for name in layer._parameters:
                container._parameters.setdefault(name, None)
            for name in layer._buffers:
                container._buffers.setdefault(name, None)
            layer._parameters = container._parameters
            layer._buffers = container._buffers
            layer._non_persistent_buffers_set = container._non_persistent_buffers_set
            layer._modules = container._modules
        for alias in self.aliases.get(path, [path]):
            parent, _, name = alias.rpartition(".")
            container_at(self.root, parent)._modules[name] = layer
