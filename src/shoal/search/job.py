"""What a run is to do: a model, data and settings, from flat values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from typing_extensions import override

from shoal.errors import ConfigError, OptionError, unknown_name
from shoal.options import (
    AUTO,
    DataOptions,
    Options,
    PublishedRecipe,
    Recipe,
    find_recipe,
    options_of,
    published_recipes,
    recipe_for,
)
from shoal.search.options import JobOptions, MachineOptions, SearchOptions
from shoal.search.settings import Settings, option_classes, task_classes


@dataclass(frozen=True, kw_only=True)
class Job(JobOptions):
    """A `shoal compress` as a whole: its own options, how to read the data, and the settings."""

    reading: DataOptions
    settings: Settings
    notes: tuple[str, ...] = ()  # what was chosen for the user

    @override
    def to_dict(self) -> dict[str, Any]:
        """Return everything, flat, as a YAML file may have it."""
        return {**self.about(), **self.settings.to_dict()}

    def about(self) -> dict[str, Any]:
        """Return what the settings do not say."""
        return {name: getattr(self, name) for name in _OWN} | self.reading.to_dict()

    @override
    def identity(self) -> dict[str, Any]:
        """Return what decides the result besides the settings and the weights."""
        return {"data": self.data, **self.reading.identity()}


_OWN = tuple(known.name for known in options_of(JobOptions))


def job_of(values: Mapping[str, Any], over: Mapping[str, Any]) -> Job:
    """Return the job of some flat values, such as a file's, with those that are not None over them.

    Raises:
        ShoalError: one line on what is wrong: there is no such option, method, task or recipe, a
            value makes no sense, or model or data are not given.
    """
    for some in (values, over):
        _check_types(some)
    values = {k: v for k, v in values.items() if k != "method" or v is not None}
    given = {name: value for name, value in over.items() if value is not None}
    preset = _preset(values, given)
    if "recipe" in given:  # it replaces what the file spells out
        recipe = find_recipe(given["recipe"]).to_dict() if preset is None else preset.values()
        values = {k: v for k, v in values.items() if k not in recipe}
    before = values.get("method")
    if before is not None and given.get("method", before) != before:
        foreign = {f.name for f in fields(option_classes(before)[before.partition("?")[0]])}
        values = {k: v for k, v in values.items() if k not in foreign}
    before = values.get("task")
    if before is not None and given.get("task", before) != before:
        foreign = {f.name for f in fields(task_classes(before)[before.partition("?")[0]])}
        values = {k: v for k, v in values.items() if k not in foreign}
    values |= given
    if preset is not None:
        usual = {"epochs": preset.epochs, "batch_size": preset.batch_size}
        values = {**usual, **values, "recipe": preset.recipe}
    _check_named(values)
    # A name that no option has, before a class that knows but some of them raises for it.
    check_names(values, classes_of(values.get("method"), values.get("task")))
    own = _own(values)
    if own.get("pretrained") and own.get("checkpoint"):
        raise ConfigError("both checkpoint and pretrained are given: weights come from one of them")
    reading = data_options(values)
    # The seed is of both.
    rest = {k: v for k, v in values.items() if k == "seed" or k not in (*_OWN, *reading)}
    settings = Settings.of(**rest)
    notes = () if preset is None else (f"recipe {preset.describe()}",)
    return Job(reading=DataOptions.from_dict(reading), settings=settings, notes=notes, **own)


def _check_named(values: Mapping[str, Any]) -> None:
    hints = {"model": "no model is given: name one", "data": "no data are given: add --data D"}
    for name, hint in hints.items():
        if not values.get(name):
            raise ConfigError(f"{hint}, or set '{name}' in the file of --config")


def _preset(values: Mapping[str, Any], given: Mapping[str, Any]) -> PublishedRecipe | None:
    """Return the published recipe that a job names or lets choose; None for any other."""
    both = {**values, **given}
    name = both.get("recipe")
    if name == AUTO:
        _check_named(both)
        return recipe_for(both["model"], both["data"], both.get("method"))
    return published_recipes().get(name) if isinstance(name, str) else None


def classes_of(method: str | None, task: str | None) -> list[type[Options]]:
    """Return all classes of options that a job may have, with those of what is named."""
    own = [*option_classes(method).values(), *task_classes(task).values()]
    return [JobOptions, DataOptions, Recipe, SearchOptions, MachineOptions, *own]


def check_names(names: Iterable[str], classes: Iterable[type[Options]]) -> None:
    """Raise `NameNotFoundError` for a name that is no option of a job with these classes."""
    known = {"method", "task", "recipe"}.union(f.name for cls in classes for f in fields(cls))
    for name in names:
        if name not in known:
            raise unknown_name("option", name, sorted(known))


def _check_types(values: Mapping[str, Any]) -> None:
    """Raise `OptionError` for what is looked at before all options are."""
    JobOptions.from_dict(_own(values))
    for name in ("method", "task"):
        if not isinstance(values.get(name), str | None):
            raise OptionError(name, values[name], "a text")


def _own(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in _OWN if values.get(name) is not None}


def data_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some flat values that are options of reading data."""
    known = {f.name for f in fields(DataOptions)}
    return {name: value for name, value in values.items() if name in known}
