"""Everything that decides a search, from flat values: a method, and one object for each concern.

`shoal.compress` and the command line both come through here, so that a value is checked once. This
needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from shoal.errors import ConfigError
from shoal.options import Options, Recipe, find_recipe, share_out
from shoal.registry import Registry
from shoal.search.method import methods
from shoal.search.options import MachineOptions, SearchOptions


@dataclass(frozen=True)
class Settings:
    """A method, under the name it was given by, with the options of everything."""

    name: str
    method: Any
    options: Any
    search: SearchOptions
    machine: MachineOptions
    recipe: Recipe

    @classmethod
    def of(
        cls,
        method: Any = "shoal",
        recipe: Recipe | str | Mapping[str, Any] | None = None,
        **values: Any,
    ) -> Settings:
        """Return the settings of some flat values; what is left out has its default.

        Args:
            method: a name, which options may follow as in "easier?how=identity", a target such as
                "path/file.py:Name", or the class itself.
            recipe: a recipe, its name, or single values of one; None is the method's own.
            **values: options of the search, the machine, the recipe and the method.

        Raises:
            NameNotFoundError: there is no such method, recipe or option; names the nearest.
            OptionError: a value makes no sense.
            ConfigError: the method has no such option, and others have.

        Example:
            >>> import shoal.methods
            >>> Settings.of("easier", epochs=2, how="identity", lr=0.1).recipe.lr
            0.1
        """
        found, written = methods.find(method) if isinstance(method, str) else (method, {})
        values = {**written, **values}
        parts = (SearchOptions, MachineOptions, Recipe, found.Options)
        name = name_of(method)
        _refuse_others(name, parts, values)
        search, machine, training, own = share_out(values, *parts)
        usual = getattr(found, "recipe", "finetune")
        trained_by = find_recipe(recipe if isinstance(recipe, Recipe | str) else usual)
        if isinstance(recipe, Mapping):
            training = {**recipe, **training}
        return cls(
            name=name,
            method=found,
            options=found.Options.from_dict(own),
            search=SearchOptions.from_dict(search),
            machine=MachineOptions.from_dict(machine),
            recipe=Recipe.from_dict({**trained_by.to_dict(), **training}),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all values, flat; `Settings.of(**values)` is the way back."""
        return self._merged("to_dict")

    def identity(self) -> dict[str, Any]:
        """Return the values that decide the result, flat."""
        return self._merged("identity")

    def _merged(self, what: str) -> dict[str, Any]:
        merged: dict[str, Any] = {"method": self.name}
        for part in (self.search, self.machine, self.recipe, self.options):
            merged |= getattr(part, what)()
        return merged


def option_classes(method: str | None = None) -> dict[str, type[Options]]:
    """Return the option classes of all methods, by name, and of one more as the user named it."""
    known = {name: methods[name].Options for name in methods.names()}
    if method is not None and method.partition("?")[0] not in known:
        known[method.partition("?")[0]] = methods.find(method)[0].Options
    return known


def name_of(method: Any) -> str:
    """Return a method's name: as it was written, without options, or as it is registered."""
    if isinstance(method, str):
        return method.partition("?")[0]
    method = method if isinstance(method, type) else type(method)
    known: Registry[Any] = methods
    registered = (name for name in known if known[name] is method)
    return next(registered, f"{method.__module__}:{method.__qualname__}")


def _refuse_others(
    method: str, parts: tuple[type[Options], ...], values: Mapping[str, Any]
) -> None:
    """Raise for an option that only other methods have."""
    own = {f.name for part in parts for f in fields(part)}
    for name in (name for name in values if name not in own):
        classes = option_classes().items()
        others = [repr(k) for k, cls in classes if name in {f.name for f in fields(cls)}]
        if not others:
            return  # nobody's: told where the values are shared out
        raise ConfigError(
            f"the method '{method}' has no option {name}: omit it, or choose {' or '.join(others)}"
        )
