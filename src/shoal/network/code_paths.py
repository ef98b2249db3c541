"""What the code that a graph becomes reads of its network, as Python understands that code."""

from __future__ import annotations

import ast

from torch import fx
from typing_extensions import override


def paths_read(graph: fx.Graph) -> set[str]:
    """Return the paths below the network that the code of a graph reads; "" is the network itself.

    Example:
        >>> graph = fx.Graph()
        >>> _ = graph.output(graph.call_module("layer1.0.conv", (graph.placeholder("x"),)))
        >>> paths_read(graph)
        {'layer1.0.conv'}
    """
    reader = _Reader()
    reader.visit(ast.parse(graph.python_code("self").src))
    return reader.paths


class _Reader(ast.NodeVisitor):
    def __init__(self) -> None:
        self.paths: set[str] = set()

    @override
    def visit(self, node: ast.AST) -> None:
        parts = _below_self(node)
        if parts is None:
            self.generic_visit(node)
        else:
            self.paths.add(".".join(parts))


def _below_self(node: ast.AST) -> list[str] | None:
    """Return the names that lead from `self` to what an expression is; None for anything else."""
    if isinstance(node, ast.Name):
        return [] if node.id == "self" else None
    if isinstance(node, ast.Attribute):
        owner, name = node.value, node.attr
    elif _gets_attribute(node):
        owner, name = node.args[0], node.args[1].value  # type: ignore[attr-defined]
    else:
        return None
    above = _below_self(owner)
    return None if above is None else [*above, name]


def _gets_attribute(node: ast.AST) -> bool:
    """Whether it is a call such as `getattr(self.layers, "0")`."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "getattr"
        and len(node.args) == 2
        and isinstance(node.args[1], ast.Constant)
    )
