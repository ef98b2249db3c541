"""The names that an operation is given."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.errors import ConfigError

__all__ = ["named_once"]


def named_once(names: Sequence[str] | str) -> list[str]:
    """Return the names as a list; raises `ConfigError` if one is given twice."""
    chosen = [names] if isinstance(names, str) else list(names)
    twice = next((name for name in chosen if chosen.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"'{twice}' is named twice: name each once")
    return chosen
