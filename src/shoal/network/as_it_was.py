"""A model keeps what it held, whatever its forward pass and an export of it do to it.

A forward pass may count, cache a tensor, or register a buffer at its first call. Under an export it
would do so with tensors that have no values, and the model could not run any more.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shoal.network.inputs import version_of

_CONTAINERS = (dict, OrderedDict, defaultdict, list, set)


@contextmanager
def as_it_was(model: nn.Module, *, but_new_buffers: bool = False) -> Iterator[None]:
    """Undo what is done to a model's attributes and buffers, their contents and values.

    Parameters are left alone. `but_new_buffers` keeps those that were not there before.
    """
    modules = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    contents = [(held, held.copy()) for held in _containers([own for _, own, _ in modules])]
    tensors = {
        id(value): value
        for held in (*(own for _, own, _ in modules), *(own for _, own in contents))
        for value in (held.values() if isinstance(held, dict) else held)
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
    }
    values = [(tensor, tensor.clone(), version_of(tensor)) for tensor in tensors.values()]
    try:
        yield
    finally:
        new = [_new_buffers(module, buffers) for module, _, buffers in modules]
        for module, own, _ in modules:
            now = vars(module)
            for name in now.keys() - own.keys():
                del now[name]
            now.update(own)
        for held, before in contents:
            held.clear()
            held.extend(before) if isinstance(held, list) else held.update(before)
        for (module, _, _), made in zip(modules, new, strict=True):
            for name, (value, persistent) in made.items() if but_new_buffers else ():
                module._buffers[name] = value
                if not persistent:
                    module._non_persistent_buffers_set.add(name)
        with torch.no_grad():
            for tensor, value, version in values:
                if version_of(tensor) != version:
                    tensor.copy_(value)


def _containers(values: list[Any]) -> list[Any]:
    """Return the dictionaries, lists and sets in these values and in each other, each once."""
    found: dict[int, Any] = {}
    waiting = [value for own in values for value in own.values()]
    while waiting:
        value = waiting.pop()
        if type(value) in _CONTAINERS and id(value) not in found:
            found[id(value)] = value
            waiting += value.values() if isinstance(value, dict) else value
    return list(found.values())


def _new_buffers(
    module: nn.Module, before: dict[str, Tensor | None]
) -> dict[str, tuple[Tensor, bool]]:
    """Return the buffers that a module got since, and whether they are saved with it."""
    unsaved = module._non_persistent_buffers_set
    return {
        name: (value, name not in unsaved)
        for name, value in module._buffers.items()
        if value is not None and before.get(name) is None
    }
