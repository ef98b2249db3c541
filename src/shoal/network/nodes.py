"""Small questions about one node of an exported graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch._ops import OpOverload

from shoal.network.contexts import CONTEXT_CALLS

__all__ = [
    "bound_arguments",
    "is_impure",
    "lookup_tensor",
    "makes_memory",
    "module_path",
    "numbered",
    "shape_of",
    "tables_of",
    "writes",
]


def module_path(node: fx.Node) -> str:
    """Return the path of the innermost original module whose forward pass made `node`."""
    stack = node.meta.get("nn_module_stack") or {}
    # The root's own code has a placeholder of PyTorch's here in some exports.
    paths = [path for path, _ in stack.values() if not path.startswith("_empty_nn_module_stack")]
    return str(paths[-1]) if paths else ""


def bound_arguments(node: fx.Node) -> dict[str, Any]:
    """Return the call's arguments by the names of its schema, defaults filled in."""
    assert isinstance(node.target, OpOverload)
    bound: dict[str, Any] = {}
    for i, arg in enumerate(node.target._schema.arguments):
        if i < len(node.args):
            bound[arg.name] = node.args[i]
        else:
            bound[arg.name] = node.kwargs.get(arg.name, arg.default_value)
    return bound


def lookup_tensor(module: nn.Module, path: str) -> Any:
    """Return the parameter, buffer or plain tensor attribute at `path`, or None."""
    value: Any = module
    for name in path.split("."):
        # A model's own children and tensors come before attributes of a `Network`.
        tables = tables_of(value) if isinstance(value, nn.Module) else ()
        held = [table for table in tables if name in table]
        value = held[0][name] if held else getattr(value, name, None)
    return value if isinstance(value, Tensor) else None


def tables_of(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Return the very dictionaries that hold a module's children and tensors."""
    return module._modules, module._parameters, module._buffers


def numbered(name: str, taken: Callable[[str], bool]) -> str:
    """Return `name`, or the first of name_1, name_2, … that is not taken."""
    further = (f"{name}_{n}" for n in itertools.count(1))
    return next(free for free in itertools.chain([name], further) if not taken(free))


def shape_of(node: fx.Node) -> dict[str, Any]:
    """Return the output's shape (None for the batch and all that follows from it) and dtype."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return {}
    shape = tuple(s if isinstance(s, int) else None for s in value.shape)
    return {"shape": shape, "dtype": value.dtype}


def makes_memory(node: fx.Node) -> bool:
    """Whether a call makes a new tensor out of nothing but a shape, as masks are made."""
    if not isinstance(node.target, OpOverload):
        return False
    name = node.target._schema.name.removeprefix("aten::").removeprefix("new_")
    return name.removesuffix("_like") in ("zeros", "ones", "full", "empty", "arange", "eye")


def is_impure(node: fx.Node) -> bool:
    """Whether a node must stay though nothing reads it."""
    if node.op in ("placeholder", "output"):
        return True
    if node.op == "call_function" and node.target in CONTEXT_CALLS:
        return True
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return False
    return node.target._schema.is_mutable


def writes(node: fx.Node) -> bool:
    """Whether a node calls an operation that changes a tensor in place."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable
