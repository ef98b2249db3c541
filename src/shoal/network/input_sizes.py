"""The sizes that a network's inputs must have, checked at each call."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

from shoal.errors import CaptureError, PlanError

_NAME = re.compile(r"batch|size_\d+_\d+")
_ALLOWED = (
    ast.Expression, ast.Compare, ast.BinOp, ast.UnaryOp, ast.Load, ast.Add,
    ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.USub, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq,
    ast.NotEq,
)  # fmt: skip


_Names: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Sizes:
    """What the sizes of a network's inputs must be.

    Attributes:
        fixed: by input, the dimensions whose size must be the example's.
        conditions: comparisons that must hold, of `batch` and of `size_i_d`, which is dimension d
            of input i.
    """

    fixed: tuple[tuple[int, ...], ...] = ()
    conditions: tuple[str, ...] = ()
    _holds: tuple[Callable[[_Names], bool], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_holds", tuple(map(_function, self.conditions)))

    def __reduce__(self) -> tuple[Any, ...]:
        return Sizes, (self.fixed, self.conditions)

    @property
    def free(self) -> bool:
        """Whether no call needs a check."""
        return not any(self.fixed) and not self.conditions

    def is_fixed(self, number: int, dim: int) -> bool:
        """Whether a dimension of an input must have the example's size."""
        return dim in self._fixed(number)

    def _fixed(self, number: int) -> tuple[int, ...]:
        return self.fixed[number] if number < len(self.fixed) else ()

    def check(self, leaves: Sequence[Any], example: Sequence[Any]) -> None:
        """Raise `CaptureError` if a call's inputs have sizes that the network is not for."""
        for number, (leaf, spec) in enumerate(zip(leaves, example, strict=True)):
            if not isinstance(leaf, Tensor) or not hasattr(spec, "shape"):
                continue
            fits = leaf.dim() == len(spec.shape) and not any(
                leaf.shape[d] != spec.shape[d] for d in self._fixed(number)
            )
            if not fits:
                raise CaptureError(
                    f"input {number} has the shape {_shape(leaf.shape)} and the network is for "
                    f"{self.described(number, spec.shape)}: give inputs of that shape, or capture "
                    "the model with an example of the other"
                )
        names = _names(leaves) if self.conditions else {}
        for condition, holds in zip(self.conditions, self._holds, strict=True):
            if not _true(holds, names):
                raise CaptureError(
                    f"the network is for inputs with {readable(condition)} alone, where its model "
                    "takes the branch that was captured: capture it with an example of that size"
                )

    def holds(self, condition: str, leaves: Sequence[Any]) -> bool:
        """Whether one of the conditions holds for these inputs."""
        return _true(self._holds[self.conditions.index(condition)], _names(leaves))

    def without(self, conditions: Sequence[str]) -> Sizes:
        """Return these but for some of the conditions."""
        return Sizes(self.fixed, tuple(c for c in self.conditions if c not in conditions))

    def described(self, number: int, shape: Sequence[int]) -> str:
        """Return the sizes that an input may have, as "[batch, 3, any, any]"."""
        sizes = [str(n) if self.is_fixed(number, d) else "any" for d, n in enumerate(shape)]
        return f"[{', '.join(['batch', *sizes[1:]][: len(shape)])}]"


def is_condition(text: str) -> bool:
    """Whether a text is a comparison of sizes that can be checked."""
    try:
        _function(text)
    except PlanError:
        return False
    return True


def readable(condition: str) -> str:
    """Return a condition as people say it."""
    words = condition.split()
    for i, word in enumerate(words):
        if word.startswith("size_"):
            number, dim = word.removeprefix("size_").split("_")
            words[i] = f"dimension {dim} of input {number}"
        elif word == "batch":
            words[i] = "a batch size"
    return " ".join(words)


def _true(holds: Callable[[_Names], bool], names: _Names) -> bool:
    try:
        return holds(names)
    except ZeroDivisionError:
        return False


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _names(leaves: Sequence[Any]) -> _Names:
    names: dict[str, Any] = {}
    for number, leaf in enumerate(leaves):
        for dim, size in enumerate(leaf.shape if isinstance(leaf, Tensor) else ()):
            names[f"size_{number}_{dim}"] = size
            if dim == 0:
                names.setdefault("batch", size)
    return names


def _function(condition: str) -> Callable[[_Names], bool]:
    """Return a function of the sizes by name; `PlanError` if it is no comparison of sizes.

    Only names and whole numbers, compared and computed with, become code.
    """
    try:
        tree = ast.parse(condition, mode="eval") if len(condition) <= 1000 else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    compares = tree is not None and isinstance(tree.body, ast.Compare)
    if tree is None or not compares or not all(map(_is_allowed, ast.walk(tree))):
        raise PlanError(f"'{condition[:100]}' is no condition on sizes")
    text = _NAME.sub(lambda name: f"sizes['{name[0]}']", ast.unparse(tree))
    holds: Callable[[_Names], bool] = eval(f"lambda sizes: {text}", {"__builtins__": {}})
    return holds


def _is_allowed(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    if isinstance(node, ast.Name):
        return _NAME.fullmatch(node.id) is not None
    return isinstance(node, _ALLOWED)
