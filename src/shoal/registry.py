"""The one registry mechanism: criteria, methods, data sets, models and recipes all use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Generic, TypeVar

from shoal.errors import unknown_name

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Names bound to things of one kind, filled by decorators.

    Args:
        what: the kind of thing in the singular, for messages ("criterion").
        later: modules that register entries and need this registry's own room to be there first;
            they are imported when an entry is first looked for.

    Example:
        >>> criteria = Registry("criterion")
        >>> @criteria.register("entropy")
        ... class Entropy: ...
        >>> criteria["entropy"] is Entropy
        True
    """

    def __init__(self, what: str, later: Sequence[str] = ()) -> None:
        self.what = what
        self._later = list(later)
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
        entries = self._all()
        try:
            return entries[name]
        except KeyError:
            raise unknown_name(self.what, name, entries) from None

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._all())

    def _all(self) -> dict[str, T]:
        while self._later:
            import_module(self._later.pop())
        return self._entries
