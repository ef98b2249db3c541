"""The one registry mechanism: methods, criteria, tasks, runtimes, models, data sets and recipes.

A name is one of the built-in entries, which the room that owns them registers when it is imported;
one that was registered by `shoal.register_…`; an entry point of the group `shoal.<kind>s` of any
installed package; or `path/file.py:Name` and `package.module:Name`, which name the code itself.
Options follow as `?key=value&…`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Generic, TypeVar

from shoal.errors import ConfigError, summary, unknown_name
from shoal.targets import import_target, parse_target

T = TypeVar("T")


class Registry(Generic[T]):
    """Names bound to things of one kind."""

    def __init__(self, what: str, group: str | None = None) -> None:
        self.what = what  # the kind of thing in the singular, for messages ("criterion")
        self.group = group  # of the entry points; None for a kind that others cannot extend
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under `name`, if that is free."""
        if not name or ":" in name or "?" in name:
            raise ConfigError(f"'{name}' cannot name a {self.what}: use no ':' and no '?'")

        def bind(entry: T) -> T:
            if name in self._entries and not _same_code(self._entries[name], entry):
                raise ConfigError(f"there already is a {self.what} '{name}': choose another name")
            self._entries[name] = entry
            return entry

        return bind

    def find(self, text: str) -> tuple[T, dict[str, Any]]:
        """Return what `name?key=value` or `path/file.py:Name?key=value` names, and its options."""
        name, options = parse_target(text)
        if ":" in name and name not in self:
            return import_target(name), options
        return self[name], options

    def __getitem__(self, name: str) -> T:
        """Return the entry; raises `NameNotFoundError` with the nearest names if there is none."""
        if name not in self._entries:
            point = self._points().get(name)
            if point is None:
                raise unknown_name(self.what, name, self.names())
            try:
                loaded: T = point.load()
            except Exception as error:
                package = point.dist.name if point.dist else point.value
                raise ConfigError(
                    f"the {self.what} '{name}' of the package '{package}' cannot be imported: "
                    f"{summary(error)}"
                ) from error
            self._entries.setdefault(name, loaded)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._points()

    def __iter__(self) -> Iterator[str]:
        return iter({**self._entries, **self._points()})

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self)

    def _points(self) -> dict[str, EntryPoint]:
        if self.group is None:
            return {}
        return {point.name: point for point in entry_points(group=self.group)}


def entry_points(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group in all installed packages.

    They are read again only after something was installed: it takes a tenth of a second.
    """
    places = [Path(place or ".") for place in sys.path]
    return _entry_points(group, tuple((p, p.stat().st_mtime_ns) for p in places if p.exists()))


@functools.cache
def _entry_points(group: str, places: tuple[tuple[Path, int], ...]) -> tuple[EntryPoint, ...]:
    return tuple(metadata.entry_points(group=group))


@functools.cache
def import_group(group: str) -> None:
    """Import what installed packages name as entry points of a group: it registers itself."""
    for point in entry_points(group=group):
        try:
            point.load()
        except Exception as error:
            raise ConfigError(
                f"'{point.value}', which an installed package names for {group}, cannot be "
                f"imported: {summary(error)}"
            ) from error


def names_outside(group: str) -> list[str]:
    """Return the names that installed packages give things of a group, without importing them."""
    return [point.name for point in entry_points(group=group)]


def _same_code(first: Any, second: Any) -> bool:
    """Whether both are one definition, which a file that is run twice registers twice."""
    one, two = (
        (getattr(entry, "__module__", None), getattr(entry, "__qualname__", id(entry)))
        for entry in (first, second)
    )
    return one == two


def import_modules(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, each of which registers what it holds."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
