"""The registry of shoal's own models: what `shoal:NAME` can name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from shoal.errors import ConfigError
from shoal.registry import Registry

__all__ = ["check_counts", "models", "register_model"]

models: Registry[Callable[..., nn.Module]] = Registry("model", "shoal.models")
register_model = models.register


def check_counts(**counts: int) -> None:
    """Raise `ConfigError` for the first of the named counts that is not a positive integer."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}: it must be an integer of at least 1")
