"""A run's configuration: what `--config` reads, flags override, and the run's folder keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from shoal.errors import ConfigError, unknown_name
from shoal.search.legacy import Search, recipe_of
from shoal.training import Recipe, find_recipe

__all__ = ["Config", "read_config"]

_RECIPE_FIELDS = tuple(field.name for field in fields(Recipe))


class Config(BaseModel):
    """Everything that decides a `shoal compress` run, one flat level.

    Fields that are None are left to the model's, the data's or the recipe's own default.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True)

    # what
    model: str
    checkpoint: str | None = None
    data: str
    # how to search
    method: str = "easier"
    criterion: str | None = None
    how: str = "line"
    max_drop: float = 1.0
    remove: int | None = None
    per_step: int | None = None
    step_saving: float | None = None
    tries: int | None = None
    patience: int = 0
    samples: int | None = None
    keep_first: bool = False
    keep_per_stage: int = 0
    per_latency: bool = False
    move_padding: bool = True
    rewind: int | None = None
    rewind_from: str | None = None
    score_on: str = "trained"
    moves: list[str] | None = None
    target_latency: float | None = None
    target_macs: float | None = None
    # data
    train_samples: int | None = None
    val_fraction: float | None = None
    val_samples: int | None = None
    batch_size: int = 128
    eval_batch_size: int | None = None
    image_size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    augment: str = "auto"
    skip_broken: bool = False
    download: bool = False
    workers: int = 2
    # training
    epochs: int = 1
    dense_epochs: int = 0
    final_epochs: int = 0
    final_lr: float | None = None
    recipe: str | None = None
    optimizer: str | None = None
    lr: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    weight_decay: float | None = None
    decay_all: bool | None = None
    schedule: str | None = None
    milestones: list[float] | None = None
    gamma: float | None = None
    warmup_epochs: float | None = None
    label_smoothing: float | None = None
    clip_norm: float | None = None
    precision: str | None = None
    channels_last: bool | None = None
    accumulate: int | None = None
    distill: float | None = None
    temperature: float | None = None
    early_stop: int | None = None
    # machine
    seed: int = 0
    device: str | None = None
    latency_batch: int = 1
    runtime: str = "eager"
    energy: bool = False
    country: str | None = None

    def training_recipe(self) -> Recipe:
        """Return the named recipe with the options that are set here."""
        own = {name: getattr(self, name) for name in _RECIPE_FIELDS}
        own = {name: value for name, value in own.items() if value is not None}
        named = find_recipe(self.recipe or recipe_of(self.method))
        return Recipe.from_dict({**named.to_dict(), **own})

    def search_options(self) -> dict[str, Any]:
        """Return the fields that are options of the search, without the recipe."""
        names = {field.name for field in fields(Search)} - {"recipe"}
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def data_options(self) -> dict[str, Any]:
        """Return the fields that are options of `load_data`."""
        names = (
            "train_samples", "val_fraction", "val_samples", "batch_size", "eval_batch_size",
            "image_size", "mean", "std", "augment", "skip_broken", "download", "workers", "seed",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the result and that no weights or search options tell.

        A run that goes on must have them unchanged. Where the model and its weights come from is
        not among them: their hash is.
        """
        names = (
            "data", "train_samples", "val_fraction", "val_samples", "batch_size", "image_size",
            "mean", "std", "augment", "skip_broken",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


def read_config(path: str | Path | None, flags: Mapping[str, Any]) -> Config:
    """Return the configuration of a YAML file with flags over it.

    Args:
        path: the file; None for flags alone.
        flags: what the command line gave; None values are "not given".

    Raises:
        ConfigError: the file is missing or malformed, or a value has the wrong type.
        NameNotFoundError: a key is unknown; tells the nearest valid names.
    """
    values = _read_yaml(Path(path).expanduser()) if path is not None else {}
    for name in values:
        if name not in Config.model_fields:
            raise unknown_name("option", str(name), Config.model_fields)
    values |= {name: value for name, value in flags.items() if value is not None}
    for name in ("model", "data"):
        if not values.get(name):
            raise ConfigError(f"no {name} is given: say which on the command line or in --config")
    try:
        return Config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{where} is {first['input']!r}: {first['msg']}") from error


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
    return values
