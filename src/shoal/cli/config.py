"""What a command is to do: a YAML file's options with flags over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from shoal.errors import ConfigError, unknown_name
from shoal.options import DataOptions, Recipe, find_recipe

if TYPE_CHECKING:
    from shoal.search.settings import Settings

__all__ = ["Job", "data_options", "read_job", "run_options"]


@dataclass(frozen=True)
class Job:
    """A `shoal compress` as a whole.

    Attributes:
        model: MODEL.
        checkpoint: a file of weights, or None.
        data: D.
        reading: how the data are read.
        settings: the method with all its options.
        energy: whether energy is measured.
        country: where its electricity is made, or None.
    """

    model: str
    checkpoint: str | None
    data: str
    reading: DataOptions
    settings: Settings
    energy: bool = False
    country: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything, flat, as a YAML file may have it."""
        return {**self.about(), **self.settings.to_dict()}

    def about(self) -> dict[str, Any]:
        """Return what the settings do not say."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in own.items() if k not in ("reading", "settings")} | (
            self.reading.to_dict()
        )

    def identity(self) -> dict[str, Any]:
        """Return what decides the result besides the settings and the weights."""
        return {"data": self.data, **self.reading.identity()}


def read_job(path: str | Path | None, flags: Mapping[str, Any]) -> Job:
    """Return the job of a YAML file with flags over it.

    Args:
        path: the file; None for flags alone.
        flags: what the command line gave; None values are "not given".

    Raises:
        ConfigError: the file is missing or malformed, or model or data are not given.
        OptionError: a value makes no sense.
        NameNotFoundError: a key is unknown; tells the nearest.
    """
    import shoal.methods  # noqa: F401  registers them
    from shoal.search.settings import Settings

    values = _read_yaml(Path(path).expanduser()) if path is not None else {}
    given = {name: value for name, value in flags.items() if value is not None}
    if "recipe" in given:  # it replaces what the file spells out
        recipe = find_recipe(given["recipe"]).to_dict()
        values = {k: v for k, v in values.items() if k not in recipe}
    if given.get("method", values.get("method")) != values.get("method"):
        values = _without_method(values)
    values |= given
    for name in ("model", "data"):
        if not values.get(name):
            raise ConfigError(f"no {name} is given: say which on the command line or in --config")
    _check_names(values)
    reading = DataOptions.from_dict(data_options(values))
    own = {f.name for f in fields(Job)}
    rest = {k: v for k, v in values.items() if k not in (own | data_options(values).keys())}
    settings = Settings.of(**rest, **({"seed": values["seed"]} if "seed" in values else {}))
    chosen = {k: v for k, v in values.items() if k in own - {"reading", "settings"}}
    return Job(reading=reading, settings=settings, **{"checkpoint": None, **chosen})


def _check_names(values: Mapping[str, Any]) -> None:
    """Raise for a name that no option has, before a class that knows but some of them does."""
    from shoal.search.options import MachineOptions, SearchOptions
    from shoal.search.settings import option_classes

    classes = [DataOptions, Recipe, SearchOptions, MachineOptions]
    every = [*classes, *option_classes(values.get("method")).values()]
    known = {f.name for cls in (Job, *every) for f in fields(cls)} | {"method", "recipe"}
    for name in values:
        if name not in known - {"reading", "settings"}:
            raise unknown_name("option", name, sorted(known - {"reading", "settings"}))


def data_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some flat values that are options of reading data."""
    known = {f.name for f in fields(DataOptions)}
    return {name: value for name, value in values.items() if name in known}


def run_options(folder: Path) -> dict[str, Any]:
    """Return the flat options of a run; nothing where it has none, or its file was edited."""
    try:
        return _read_yaml(folder / "config.yaml")
    except ConfigError:
        return {}


def _without_method(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's values without the options of its method: the flags choose another one."""
    from shoal.search.settings import option_classes

    classes = option_classes(values.get("method"))
    own = {f.name for f in fields(classes[values["method"]])} if "method" in values else set()
    return {name: value for name, value in values.items() if name not in own}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file '{path}'") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"'{path}' cannot be read as YAML: {reason}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"'{path}' must hold 'option: value' lines")
    return {str(name): value for name, value in values.items()}
