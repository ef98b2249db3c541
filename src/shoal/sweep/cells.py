"""Cells: the runs that one YAML file asks for, each of which is a job like any other.

An option whose value is a list is an axis, and the cells are all combinations of the axes; whatever
else stands there is an option of every cell. An option that takes a list itself, such as
`milestones` or `runtime`, is an axis where it is a list of lists.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.data import data_sets
from shoal.errors import ConfigError, ShoalError
from shoal.options import options_of
from shoal.search.job import Job, check_names, classes_of, job_of
from shoal.search.job_run import check_job

CELLS, EXCLUDE = "cells", "exclude"
"""What stands beside the options: hand-written parts, and what is left out."""

_FIRST = ("method", "model", "data", "seed")  # what a cell's name begins with
_NAME = 100  # characters of a folder's name, without its digest


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        job: what is done.
        given: the options by which the file tells it from other cells, the axes first.
        digest: of all that decides its result; what has its default counts as not given.
        title: method, model, data, seed and what else tells it from others, as a folder's name.
    """

    job: Job
    given: Mapping[str, Any]
    digest: str = field(init=False)
    title: str = field(init=False)

    def __post_init__(self) -> None:
        """Find its name."""
        object.__setattr__(self, "digest", _digest(self.job))
        object.__setattr__(self, "title", _title(self.job, self.given))

    @property
    def name(self) -> str:
        """The name of its folder: readable, and the same for the same run in any sweep."""
        return f"{self.title}-{self.digest}"

    def __str__(self) -> str:
        """Return what tells it from other cells, as an error says it."""
        return _told(self.given)


def cells_of(spec: Mapping[str, Any]) -> list[Cell]:
    """Return the cells of a sweep, in the order in which they are run.

    Args:
        spec: options of a run; lists are axes. `cells`, a list of such mappings, makes several
            matrices, each with its own options over those that all have in common. `exclude`, a
            list of mappings, leaves out the cells that have all values of one of them.

    Raises:
        ShoalError: one line on what is wrong: an option, method or criterion that does not exist, a
            value that makes no sense, two cells that are the same run, nothing to run.

    Example:
        >>> import shoal.methods
        >>> from shoal.sweep import cells_of
        >>> found = cells_of({"model": "shoal:digits_resnet", "data": "digits",
        ...                   "method": ["easier", "egp"], "seed": [0, 1], "epochs": 1})
        >>> [cell.title for cell in found][:2]
        ['easier-digits_resnet-digits-seed0', 'easier-digits_resnet-digits-seed1']
    """
    common = {str(name): value for name, value in spec.items()}
    parts = _mappings(common.pop(CELLS, None), CELLS) or [{}]
    excluded = _mappings(common.pop(EXCLUDE, None), EXCLUDE)
    made = [values for part in parts for values in _matrix(common, part)]
    kept = [one for one in made if not any(_matches(one[0], rule) for rule in excluded)]
    for number, rule in enumerate(excluded, start=1):
        if not any(_matches(values, rule) for values, _ in made):
            raise ConfigError(f"entry {number} of exclude leaves out no cell: mend or remove it")
    if not kept:
        raise ConfigError("exclude leaves out every cell: there is nothing to run")
    found = [_cell(values, given, alone=len(kept) == 1) for values, given in kept]
    _refuse_twins(found)
    return found


def _mappings(value: Any, name: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) and one for one in value):
        raise ConfigError(f"{name} must be a list of 'option: value' mappings")
    return [{str(key): item for key, item in one.items()} for one in value]


def _matrix(
    common: Mapping[str, Any], part: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the values of each cell of a part, and those that tell it from others."""
    whole = {**common, **part}
    classes = [
        cls
        for method in _each(whole.get("method"))
        for task in _each(whole.get("task"))
        for cls in classes_of(method, task)
    ]
    check_names(whole, classes)
    listed = {one.name for cls in classes for one in options_of(cls) if one.of is not None}
    axes = {name: value for name, value in whole.items() if _is_axis(value, name in listed)}
    for name, values in axes.items():
        if not values:
            raise ConfigError(f"{name} is an empty list: give it a value, or several")
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        own = {name: value for name, value in part.items() if name not in axes}
        yield {**whole, **point}, {**point, **own}


def _is_axis(value: Any, listed: bool) -> bool:
    if not isinstance(value, list):
        return False
    return not listed or any(isinstance(item, list) for item in value)


def _each(value: Any) -> list[str | None]:
    """Return the names that an option has in some cell; None for what is no name."""
    values = value if isinstance(value, list) else [value]
    return [one if isinstance(one, str) else None for one in values] or [None]


def _matches(values: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    return all(name in values and values[name] == wanted for name, wanted in rule.items())


def _cell(values: Mapping[str, Any], given: Mapping[str, Any], *, alone: bool) -> Cell:
    try:
        job = job_of(values, {})
        check_job(job)
    except ShoalError as error:
        if alone or not given:
            raise
        raise ConfigError(f"{error} (in the cell {_told(given)})") from error
    return Cell(job, given)


def _told(given: Mapping[str, Any]) -> str:
    """Return options as they stand in the file: `seed: 0, epochs: 1`."""
    return ", ".join(f"{name}: {plain_text(value)}" for name, value in given.items())


def _refuse_twins(cells: Sequence[Cell]) -> None:
    seen: dict[str, int] = {}
    for number, cell in enumerate(cells, start=1):
        if cell.digest in seen:
            first = seen[cell.digest]
            raise ConfigError(
                f"cells {first} and {number} ({cell}) are the same run: keep one of them"
            )
        seen[cell.digest] = number


# ---------------------------------------------------------------------- names


def _digest(job: Job) -> str:
    """Return a digest of what decides a job's result, which options that are added later keep."""
    usual = job_of(
        {"model": job.model, "data": job.data, "method": job.settings.name,
         "task": job.settings.task_name}, {},
    )  # fmt: skip
    own, usually = ({**one.settings.identity(), **one.identity()} for one in (job, usual))
    told = {name: value for name, value in own.items() if value != usually.get(name)}
    told |= {"model": job.model, "data": job.data, "method": job.settings.name}
    told |= {"checkpoint": job.checkpoint, "pretrained": job.pretrained}
    if job.settings.task_name != "classify":
        told["task"] = job.settings.task_name
    if job.settings.machine.device is not None:  # where latency was measured
        told["device"] = job.settings.machine.device
    text = json.dumps(told, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _title(job: Job, given: Mapping[str, Any]) -> str:
    first = [job.settings.name, job.model, job.data]
    others = [f"{k}={plain_text(v)}" for k, v in given.items() if k not in _FIRST and v is not None]
    words = [*map(plain_text, first), f"seed{job.settings.search.seed}", *others]
    return re.sub(r"[^\w.=+-]+", "_", "-".join(words))[:_NAME].strip("-_.")


def plain_text(value: Any) -> str:
    """Return a value in few characters: of a path or a target what stands last, and its options."""
    if not isinstance(value, str):
        return str(value).replace(" ", "")
    target, mark, options = value.partition("?")
    kind, colon, rest = target.partition(":")
    last = Path(rest.removesuffix("/")).name if colon else Path(kind).name
    named = kind in data_sets and last not in ("", kind)
    shown = f"{kind}-{last}" if named else last or kind
    return f"{shown}{mark}{options}"
