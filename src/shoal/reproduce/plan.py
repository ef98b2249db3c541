"""From a target to cells of a sweep: which data there are, which options each run has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.data import load_data
from shoal.data.dataset import check_name, data_sets
from shoal.errors import ConfigError, DataError, OptionError, ShoalError, unknown_name
from shoal.reproduce.setups import network, training
from shoal.reproduce.targets import Target, Wanted, chosen
from shoal.sweep import Cell as SweepCell
from shoal.sweep import cells_of
from shoal.targets import format_target, parse_target
from shoal.user_paths import user_path

FAITHFUL = "entropy?zeros=on&pooling=batch"
"""The entropy as the published code of EASIER computes it."""
_DECIDED = ("model", "data", "method", "seed", "cells", "exclude")
"""What the options of all runs may not have."""


@dataclass(frozen=True)
class Plan:
    """What a target asks for, with these data.

    Attributes:
        target: what is reproduced.
        wanted: its runs, those without data as well.
        spec: the sweep of those with data; see `shoal.sweep.cells_of`.
        cells: of each of `wanted` its cells, one a seed; none without data.
        missing: of each data set that was not given, where to get it and where it goes.
        budget: share of the published epochs that each training gets, whoever gave it.
    """

    target: Target
    wanted: tuple[Wanted, ...]
    spec: Mapping[str, Any]
    cells: tuple[tuple[SweepCell, ...], ...]
    missing: Mapping[str, str]
    budget: float = 1.0


# Long because each of its arguments is explained; the body is short.
def plan(
    target: Target,
    data: Sequence[str] = (),
    *,
    budget: float = 1.0,
    models: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    checkpoints: Mapping[str, str] | None = None,
    faithful: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """Return the runs of a target as cells of a sweep.

    Args:
        target: a table or figure.
        data: data sets as the command line takes them, "pacs:ROOT"; or others in their place, as
            in "cifar10=folder:ROOT". Each once. What is not said of how to read them is as in the
            paper: "cifar10:ROOT" is then "cifar10:ROOT?split=random" for EASIER.
        budget: share of the published epochs that each training gets; `options` may say another.
        models: networks by their names in the tables; all by default.
        methods: methods likewise.
        seeds: of each run.
        checkpoints: files of trained weights, by network; they take the place of pretrained ones.
        faithful: whether EASIER's entropies are those of its published code.
        options: of `shoal compress`, over those of every run.

    Raises:
        ShoalError: one line on what is wrong, before anything is run.
    """
    budget = _budget(budget, options or {})
    if not seeds or len(set(seeds)) < len(seeds):
        raise OptionError("seed", list(seeds), "different whole numbers")
    for name in _DECIDED:
        if name in (options or {}):
            raise ConfigError(f"{name} is given among the options: the target decides it")
    wanted = chosen(target, models, methods)
    fetches = bool((options or {}).get("download"))
    given = _by_kind(data, target, wanted, fetches)
    weights = checkpoints or {}
    for name in weights:
        if name not in (known := [one.model for one in wanted]):
            raise unknown_name(f"model of {target.name}", name, dict.fromkeys(known))
    parts = []
    for one in wanted:
        if one.data in given:
            values = {**_values(one, budget, faithful), "data": given[one.data], **(options or {})}
            if one.model in weights:
                values = {k: v for k, v in values.items() if k != "pretrained"}
                values["checkpoint"] = weights[one.model]
            parts.append(values)
    spec = _spec(seeds, parts)
    every = cells_of(spec) if parts else []
    if len(every) != len(parts) * len(seeds):
        raise ConfigError("an option of the runs is a list of several: give it one value")
    found = iter(every)
    cells = [
        tuple(next(found) for _ in seeds) if one.data in given else () for one in wanted
    ]  # in the order of the parts, seeds within
    lacking = dict.fromkeys(one.data for one in wanted if one.data not in given)
    return Plan(target, tuple(wanted), spec, tuple(cells), {k: where(k) for k in lacking}, budget)


def _budget(budget: float, options: Mapping[str, Any]) -> float:
    """Return the share of the epochs that the runs get: that of the options, if they have one."""
    told = options.get("budget", budget)
    share = 1.0 if told is None else told
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise OptionError("budget", told, "a share of the published epochs, above 0 to 1")
    return share


def _spec(seeds: Sequence[int], parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sweep of some runs, with what all have in common before what tells them apart."""
    shared = {
        name: value
        for name, value in (parts[0] if parts else {}).items()
        if len(parts) > 1 and all(name in part and part[name] == value for part in parts)
    }
    own = [{k: v for k, v in part.items() if k not in shared} for part in parts]
    return {"seed": list(seeds), **shared, "cells": own}


def _by_kind(
    data: Sequence[str], target: Target, wanted: Sequence[Wanted], fetches: bool
) -> dict[str, str]:
    """Return the given data sets by those of the tables that they are, or stand for.

    What is left open of how they are read is as in the paper. Where the runs fetch them, they need
    not be there yet.
    """
    needed = list(dict.fromkeys(one.data for one in wanted))
    found: dict[str, str] = {}
    for text in data:
        place, equals, other = text.partition("=")
        if not (equals and place.isidentifier()):
            place, other = text.partition(":")[0], text
        check_name(other)
        if place not in needed:
            raise ConfigError(
                f"{target.name} has no runs on '{place}': give {', '.join(needed)}, or write "
                f"{needed[0]}={other} for other data in its place"
            )
        if place in found:
            raise ConfigError(f"the data set '{place}' is given twice: keep one of them")
        if not fetches:
            _check_there(other)
        found[place] = _as_read(other, place, target)
    return found


def _as_read(data: str, place: str, target: Target) -> str:
    """Return a data set of the tables with what the paper's reading adds to the user's."""
    if place not in target.reading or data.partition(":")[0] != place:
        return data
    root, own = parse_target(data)
    return format_target(root, {**target.reading[place], **own})


def _check_there(data: str) -> None:
    """Raise what is missing, and where to get it, if a data set's folder is not there."""
    kind, _, root = data.partition("?")[0].partition(":")
    if kind in data_sets and not (root and user_path(root).exists()):
        try:
            load_data(data)
        except DataError as error:
            raise DataError(_for_runs(error)) from error


def _for_runs(error: ShoalError) -> str:
    """Return what is missing where data are read by runs, which take options from a file."""
    return str(error).replace("add download=True", "set download: true in the file of --config")


def _values(wanted: Wanted, budget: float, faithful: bool) -> dict[str, Any]:
    """Return the options of a run but its data: whatever it costs, all removals are made.

    No padding is moved, which no paper does, and which the clock would decide.
    """
    values: dict[str, Any] = {"method": wanted.method, "max_drop": 100.0, "move_padding": False}
    if wanted.method == "easier" and faithful:
        values["criterion"] = FAITHFUL
    values |= network(wanted.model, wanted.data)
    return values | training(wanted.model, wanted.data, budget) | dict(wanted.options)


def where(kind: str) -> str:
    """Return in one line where to get a data set, and where it goes."""
    place = Path("data") / kind
    if place.exists():
        return f"'{place}' is there: give --data {kind}:{place}"
    try:
        load_data(f"{kind}:{place}")
    except ShoalError as error:  # the data are missing, or the package that reads them
        return f"{_for_runs(error)}; then give --data {kind}:{place}"
    return f"give --data {kind}:FOLDER"
