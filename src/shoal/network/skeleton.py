"""The tree of modules that holds a model's parameters and buffers under their original names.

It starts as empty containers that own the tensors; raising then puts layers in their places. Tied
modules stay one object, so that buffers they share stay shared when the network moves.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Skeleton"]


class Skeleton:
    """The containers of a model, by path.

    Args:
        model: the original; its parameters and buffers are shared, not copied.
        root: the module that becomes the new root.
    """

    def __init__(self, model: nn.Module, root: nn.Module) -> None:
        self.model = model
        self.root = root
        self.originals: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self._parents: dict[int, list[tuple[nn.Module, str]]] = {}
        self._fill(model, root, {id(model): root})

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
            self._parents.setdefault(id(known), []).append((mirror, name))

    def put(self, path: str, layer: nn.Module) -> None:
        """Put `layer` at a path. Where the original has a module there, it takes over its tensors.

        Parameters that the layer made itself are dropped; those it has no use for stay with it.
        """
        if path not in self.originals:
            parent_path, _, name = path.rpartition(".")
            parent = self.container(parent_path)
            parent._modules[name] = layer
            self._parents.setdefault(id(layer), []).append((parent, name))
            return
        container = self.container(path)
        for name in layer._parameters:
            container._parameters.setdefault(name, None)
        for name in layer._buffers:
            container._buffers.setdefault(name, None)
        layer._parameters = container._parameters
        layer._buffers = container._buffers
        layer._non_persistent_buffers_set = container._non_persistent_buffers_set
        layer._modules = container._modules
        parents = self._parents.pop(id(container))
        self._parents[id(layer)] = parents
        for parent, name in parents:
            parent._modules[name] = layer
        for child in layer._modules.values():
            self._parents[id(child)] = [
                (layer if parent is container else parent, name)
                for parent, name in self._parents[id(child)]
            ]

    def container(self, path: str) -> nn.Module:
        """Return the module at `path`, made empty if there is none."""
        module = self.root
        for name in path.split(".") if path else []:
            child = module._modules.get(name)
            if child is None:
                child = module._modules[name] = nn.Module()
                self._parents[id(child)] = [(module, name)]
            module = child
        return module

    def holds(self, path: str) -> bool:
        """Whether there is a parameter or buffer at `path`."""
        *parents, name = path.split(".")
        module: nn.Module | None = self.root
        for parent in parents:
            module = None if module is None else module._modules.get(parent)
        return module is not None and (name in module._parameters or name in module._buffers)

    def constant(self, path: str, value: Tensor) -> None:
        """Hold a tensor that the forward pass made a constant of; it is not saved."""
        parent_path, _, name = path.rpartition(".")
        container = self.container(parent_path)
        container._buffers[name] = value
        container._non_persistent_buffers_set.add(name)
