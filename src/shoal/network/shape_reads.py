"""What a model's own Python code decides by the sizes of tensors while it is exported.

An export keeps the branch that the example took. Sizes other than the batch are handed to the
model as integers that note with what they are compared.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_LIBRARY = str(Path(torch.__file__).parent)
_OWN = str(Path(__file__).parents[1])

Comparison = tuple[str, float, float, bool]
"""An operator as Python writes it, its two operands, and what came out."""


class ShapeReads(TorchFunctionMode):
    """While it is entered, gathers what sizes are compared with, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.comparisons: list[Comparison] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func not in _READERS or not _in_the_models_code():
            return found
        if isinstance(found, torch.Size):
            return torch.Size([self._noting(s) if d else s for d, s in enumerate(found)])
        batch = func is torch.Tensor.size and _dimension(args, kwargs) == 0
        return found if batch else self._noting(found)

    def _noting(self, size: Any) -> Any:
        return _Int.of(size, self.comparisons) if type(size) is int else size


_SYMBOLIC = (torch.SymInt, torch.SymFloat)
_READERS = (torch.Tensor.shape.__get__, torch.Tensor.size)  # type: ignore[attr-defined]


def _dimension(args: tuple[Any, ...], kwargs: Any) -> int:
    dim = args[1] if len(args) > 1 else (kwargs or {}).get("dim", 0)
    rank: int = args[0].dim()
    return int(dim) % max(rank, 1)


def _in_the_models_code() -> bool:
    """Whether it is neither PyTorch nor shoal that reads a shape."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back  # the export's own modes
    return frame is not None and not frame.f_code.co_filename.startswith((_LIBRARY, _OWN))


class _Noting:
    """Numbers that note with what they, and what is computed of them, are compared."""

    comparisons: list[Comparison]

    @classmethod
    def of(cls, value: Any, comparisons: list[Comparison]) -> Any:
        number = cls(value)  # type: ignore[call-arg]
        number.comparisons = comparisons
        return number


class _Int(_Noting, int):
    pass


class _Float(_Noting, float):
    pass


def _computing(name: str, plain: type) -> Callable[..., Any]:
    operation: Callable[..., Any] = getattr(plain, name)

    def compute(self: Any, *others: Any) -> Any:
        value = operation(self, *others)
        if value is NotImplemented and isinstance(others[0], _SYMBOLIC):
            return _with_symbol(name.strip("_"), plain(self), others[0])
        if type(value) is int:
            return _Int.of(value, self.comparisons)
        return _Float.of(value, self.comparisons) if type(value) is float else value

    return compute


def _with_symbol(name: str, number: Any, symbol: Any) -> Any:
    """Compute with the batch, which takes no numbers but Python's own."""
    if name.startswith("r") and name != "round":
        return getattr(operator, name[1:])(symbol, number)
    return getattr(operator, name)(number, symbol)


def _comparing(name: str, sign: str, plain: type) -> Callable[..., Any]:
    operation: Callable[..., Any] = getattr(plain, name)

    def compare(self: Any, other: Any) -> Any:
        truth = operation(self, other)
        if truth is NotImplemented and isinstance(other, _SYMBOLIC):
            return _with_symbol(name.strip("_"), plain(self), other)
        if isinstance(truth, bool) and isinstance(other, int | float):
            self.comparisons.append((sign, plain(self), _plain(other), truth))
        return truth

    return compare


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, int) else float(value)


_ARITHMETIC = (
    "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow neg pos abs "
    "round ceil floor trunc"
)
_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
for _kind, _base in ((_Int, int), (_Float, float)):
    for _name in _ARITHMETIC.split():
        setattr(_kind, f"__{_name}__", _computing(f"__{_name}__", _base))
    for _name, _sign in _COMPARISONS.items():
        setattr(_kind, f"__{_name}__", _comparing(f"__{_name}__", _sign, _base))
    for _name, _method in {"hash": _base.__hash__, "bool": lambda self: bool(self != 0)}.items():
        setattr(_kind, f"__{_name}__", _method)
