"""What a command is to do: a YAML file's options with flags over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.errors import ConfigError, DamagedError, OptionError, one_line, unknown_name
from shoal.options import DataOptions, Recipe, find_recipe
from shoal.sealed import read_yaml

if TYPE_CHECKING:
    from shoal.search.settings import Settings
    from shoal.tasks import Task


@dataclass(frozen=True)
class Job:
    """A `shoal compress` as a whole."""

    model: str
    data: str
    reading: DataOptions
    settings: Settings
    checkpoint: str | None = None
    pretrained: bool = False  # whether to fetch the weights that the model's library publishes
    energy: bool = False
    country: str | None = None  # where its electricity is made

    def to_dict(self) -> dict[str, Any]:
        """Return everything, flat, as a YAML file may have it."""
        return {**self.about(), **self.settings.to_dict()}

    def about(self) -> dict[str, Any]:
        """Return what the settings do not say."""
        return {name: getattr(self, name) for name in _OWN} | self.reading.to_dict()

    def identity(self) -> dict[str, Any]:
        """Return what decides the result besides the settings and the weights."""
        return {"data": self.data, **self.reading.identity()}


_OWN = ("model", "checkpoint", "pretrained", "data", "energy", "country")


def read_job(path: str | Path | None, flags: Mapping[str, Any]) -> Job:
    """Return the job of a YAML file, if there is one, with the flags that are not None over it."""
    import shoal.methods  # noqa: F401  registers them
    from shoal.search.options import MachineOptions, SearchOptions
    from shoal.search.settings import Settings, option_classes, task_classes

    values = _read_yaml(Path(path).expanduser()) if path is not None else {}
    for name in ("model", "data", "method", "checkpoint", "country"):
        if not isinstance(values.get(name), str | None):
            raise OptionError(name, values[name], "a text")
    for name in ("energy", "pretrained"):
        if not isinstance(values.get(name), bool | None):
            raise OptionError(name, values[name], "true or false")
    values = {k: v for k, v in values.items() if k != "method" or v is not None}
    given = {name: value for name, value in flags.items() if value is not None}
    if "recipe" in given:  # it replaces what the file spells out
        recipe = find_recipe(given["recipe"]).to_dict()
        values = {k: v for k, v in values.items() if k not in recipe}
    before = values.get("method")
    if before is not None and given.get("method", before) != before:
        foreign = {f.name for f in fields(option_classes(before)[before])}
        values = {k: v for k, v in values.items() if k not in foreign}
    before = values.get("task")
    if before is not None and given.get("task", before) != before:
        foreign = {f.name for f in fields(task_classes(before)[before.partition("?")[0]])}
        values = {k: v for k, v in values.items() if k not in foreign}
    values |= given
    for name in ("model", "data"):
        if not values.get(name):
            raise ConfigError(f"no {name} is given: say which on the command line or in --config")
    # A name that no option has, before a class that knows but some of them raises for it.
    classes = [DataOptions, Recipe, SearchOptions, MachineOptions]
    classes += option_classes(values.get("method")).values()
    classes += task_classes(values.get("task")).values()
    known = {*_OWN, "method", "task", "recipe"}.union(
        f.name for cls in classes for f in fields(cls)
    )
    for name in values:
        if name not in known:
            raise unknown_name("option", name, sorted(known))
    own = {k: v for k, v in values.items() if k in _OWN}
    if own.get("pretrained") and own.get("checkpoint"):
        raise ConfigError("both checkpoint and pretrained are given: weights come from one of them")
    reading = data_options(values)
    # The seed is of both.
    rest = {k: v for k, v in values.items() if k == "seed" or k not in own | reading}
    settings = Settings.of(**rest)
    return Job(reading=DataOptions.from_dict(reading), settings=settings, **own)


def data_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some flat values that are options of reading data."""
    known = {f.name for f in fields(DataOptions)}
    return {name: value for name, value in values.items() if name in known}


def run_task(run: Mapping[str, Any], asked: str | None = None) -> Task:
    """Return the task that was asked for, or else a run's; a folder's own code is never run."""
    from shoal.search.settings import task_classes
    from shoal.tasks import find_task

    name = str(run.get("task") or "classify")
    if asked is not None:
        return find_task(asked)
    if ":" in name:
        raise ConfigError(
            f"the run's task is '{name}', and code that a folder names is never run: give --task"
        )
    known = {f.name for f in fields(task_classes()[name])} if name in task_classes() else set()
    return find_task(name, **{key: value for key, value in run.items() if key in known})


def run_options(folder: Path) -> dict[str, Any]:
    """Return the flat options of a run; nothing where it has none, or its file was edited."""
    try:
        return _read_yaml(folder / "config.yaml")
    except ConfigError:
        return {}


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ConfigError(f"there is no configuration file '{path}'")
    try:
        values = read_yaml(path)
    except DamagedError as error:
        why = one_line(str(error.__cause__ or error))
        raise ConfigError(f"'{path}' cannot be read as YAML: {why}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"'{path}' must hold 'option: value' lines")
    return {str(name): value for name, value in values.items()}
