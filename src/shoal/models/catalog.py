"""The registry of shoal's own models: what `shoal:NAME` can name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from shoal.errors import OptionError
from shoal.registry import Registry

__all__ = ["check_counts", "models", "register_model"]

M = TypeVar("M", bound=Callable[..., nn.Module])

models: Registry[Callable[..., nn.Module]] = Registry("model", "shoal.models")


def register_model(name: str) -> Callable[[M], M]:
    """Return a decorator that makes a function that builds a model known as `shoal:name`.

    Raises:
        ConfigError: the name is taken.

    Example:
        >>> import shoal, torch
        >>> @shoal.register_model("linear")
        ... def linear(width=8, num_classes=10):
        ...     return torch.nn.Linear(width, num_classes)
        >>> shoal.models.build_model("shoal:linear?width=3")
        Linear(in_features=3, out_features=10, bias=True)
    """
    return models.register(name)  # type: ignore[return-value]


def check_counts(**counts: int) -> None:
    """Raise `ConfigError` for the first of the named counts that is not a positive integer."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(name, value, "a whole number of at least 1")
