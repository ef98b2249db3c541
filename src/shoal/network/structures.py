"""The structure of a network's inputs and outputs as JSON.

PyTorch's own form of it names types that reading would import. Here a tuple, list or dictionary
comes back as itself, a named tuple as one of the same fields, and any other type with fields (a
dataclass, a `ModelOutput` of transformers) as `Fields`, which is used like it.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from shoal.errors import PlanError

_KINDS: dict[str, Any] = {"tuple": tuple, "list": list, "dict": dict, "OrderedDict": OrderedDict}


class Fields(dict[str, Any]):
    """Values by name, attributes too and in order, like a `ModelOutput`; None for those `empty`."""

    def __init__(self, values: Any = (), empty: Iterable[str] = ()) -> None:
        super().__init__(values)
        self.__dict__["_empty"] = list(empty)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if name in self.__dict__.get("_empty", ()):
            return None
        raise AttributeError(f"there is no field '{name}', only {', '.join(self)}")

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the values that are not None, in order."""
        return tuple(self.values())


pytree.register_pytree_node(
    Fields,
    lambda fields: (list(fields.values()), [list(fields), fields.__dict__["_empty"]]),
    lambda values, context: Fields(zip(context[0], values, strict=True), context[1]),
    serialized_type_name="shoal.Fields",
)


def tree_to_json(structure: pytree.TreeSpec) -> Any:
    """Return a structure as JSON values; a number stands for each leaf."""
    leaves = [torch.empty(0) for _ in range(structure.num_leaves)]
    numbers = {id(leaf): number for number, leaf in enumerate(leaves)}

    def named(items: Iterable[tuple[str, Any]]) -> list[Any]:
        return [[name, written(value)] for name, value in items]

    def written(value: Any) -> Any:
        kind = type(value)
        if id(value) in numbers:
            return numbers[id(value)]
        if kind in (tuple, list):
            return {kind.__name__: [written(child) for child in value]}
        if kind in (dict, OrderedDict):
            if not all(isinstance(key, (str, int)) for key in value):
                raise PlanError("a dictionary with keys that are no text cannot be written")
            return {kind.__name__: named(value.items())}
        names: Any = getattr(value, "_fields", None) or getattr(kind, "__match_args__", ())
        if isinstance(value, tuple) and len(names) == len(value):
            return {"namedtuple": kind.__name__, "fields": named(zip(names, value, strict=True))}
        every = {}
        if dataclasses.is_dataclass(value):
            every = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        filled = value if isinstance(value, Mapping) else every
        empty = getattr(value, "_empty", [k for k, v in every.items() if v is None])
        if not filled or not all(isinstance(key, str) for key in filled):
            raise PlanError(f"a {kind.__name__} in the network's inputs or outputs has no fields")
        return {"fields": named((k, v) for k, v in filled.items() if v is not None),
                "empty": list(empty)}  # fmt: skip

    return written(pytree.tree_unflatten(leaves, structure))


def tree_from_json(data: Any) -> pytree.TreeSpec:
    """Return the structure that `tree_to_json` wrote; raises `PlanError` if it is damaged."""
    try:
        leaves, structure = pytree.tree_flatten(_read(data))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise PlanError(f"the structure of inputs or outputs is damaged: {error}") from error
    if leaves != list(range(len(leaves))):
        raise PlanError(
            "the structure of inputs or outputs is damaged: its leaves are out of order"
        )
    return structure


def _read(data: Any) -> Any:
    def pairs(items: Iterable[Any]) -> list[tuple[Any, Any]]:
        return [(key, _read(value)) for key, value in items]

    if isinstance(data, int):
        return data
    if "fields" not in data:
        ((kind, children),) = data.items()
        return _KINDS[kind](pairs(children) if kind.endswith("ict") else map(_read, children))
    values = dict(pairs(data["fields"]))
    if "namedtuple" in data:
        return namedtuple(data["namedtuple"], list(values))(**values)
    return Fields(values, map(str, data["empty"]))
