"""The one registry mechanism: criteria, methods, data sets, models and recipes all use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from shoal.errors import unknown_name

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Names bound to things of one kind, filled by decorators.

    Args:
        what: the kind of thing in the singular, for messages ("criterion").

    Example:
        >>> criteria = Registry("criterion")
        >>> @criteria.register("entropy")
        ... class Entropy: ...
        >>> criteria["entropy"] is Entropy
        True
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under `name`."""

        def bind(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.what} '{name}' is registered twice")
            self._entries[name] = entry
            return entry

        return bind

    def __getitem__(self, name: str) -> T:
        """Return the entry; raises `NameNotFoundError` with the nearest names if there is none."""
        try:
            return self._entries[name]
        except KeyError:
            raise unknown_name(self.what, name, self._entries) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._entries)
