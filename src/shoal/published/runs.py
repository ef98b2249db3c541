"""Which published result is of a given run: of the same kind, by what the paper did."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.published.cells import Cell, find, rows, table, tables
from shoal.targets import parse_keywords

_TWIN = "from scratch"
"""The variant of a network that was found by a method and trained anew."""
_OF_DENSE: Mapping[str, Any] = {"task": "classify", "rectifier": None,
                                "train_samples": None, "image_size": None}  # fmt: skip
_OF_ALL: Mapping[str, Any] = {**_OF_DENSE, "rewind": None, "rewind_from": None,
                              "score_on": "trained"}  # fmt: skip
# A criterion as the paper's code, and not its text, computes it: for networks that were trained by
# batches, or not at all.
_AS_CODED = {
    "entropy": {"zeros=on", "pooling=batch"},
    "grasp": {"statistics=batch"},
    "snip": {"statistics=batch"},
}


@dataclass(frozen=True)
class Used:
    """What the publications of a method did.

    Attributes:
        options: of the method, by shoal's names, those by which it decides what goes and what takes
            its place, with their values.
        free: its other options: how far it goes, and how exactly it scores.
    """

    options: Mapping[str, Any]
    free: tuple[str, ...]


@functools.cache
def used() -> dict[str, Used]:
    """Return by method what its publications did."""
    return {
        row["method"]: Used(parse_keywords(row["options"]), tuple(row["free"].split()))
        for row in rows("methods")
    }


def variants(method: str) -> list[str]:
    """Return the variants of a method that something is published of, as options of shoal."""
    found = dict.fromkeys(
        cell.variant for name in tables() for cell in table(name) if cell.method == method
    )
    return [variant for variant in found if not variant or "=" in variant]


def variant_of(options: Mapping[str, Any]) -> str | None:
    """Return the published variant that a run's options make it; None if nothing is published.

    A run is of a variant if it does what the paper did: the options that the variant names have its
    values, and all others by which the method decides what goes and what takes its place have
    those of `methods.csv`. So has what every method may be told: task, rectifier, rewinding; and
    the data are whole, and of their own size. Recipe and epochs are not asked for. A criterion may
    also be computed as the paper's code does.

    Args:
        options: of the run, flat, with the defaults of those that were not given.
    """
    known = used().get(str(options.get("method")))
    if known is None:
        return None
    fitting = (
        variant
        for variant in variants(str(options["method"]))
        if _has(options, {**_OF_ALL, **known.options, **parse_keywords(variant)})
    )
    return max(fitting, key=len, default=None)


def find_run(options: Mapping[str, Any], removed: int, *, twin: bool = False) -> Cell | None:
    """Return the published result of a run that removed so much; None without one.

    With nothing removed it is the dense network's, whatever the method. See `variant_of` for what
    the run must have done, and `find` for counts that a paper does not tell.

    Args:
        options: of the run, flat, with the defaults of those that were not given.
        removed: how many rectifiers or blocks are gone, as the method counts.
        twin: whether the result's layers were trained from scratch.
    """
    kind = {name: str(options.get(name)) for name in ("model", "data", "method")}
    if removed == 0:
        return find(**kind, removed=0) if _has(options, _OF_DENSE) and not twin else None
    variant = variant_of(options)
    if variant is None or (twin and variant):
        return None
    return find(**kind, removed=removed, variant=_TWIN if twin else variant)


def _has(options: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(_plain(options.get(name)) == value for name, value in wanted.items())


def _plain(value: Any) -> Any:
    """Return a value without what says that a criterion is computed as the paper's code does."""
    if not isinstance(value, str):
        return value
    name, _, told = value.partition("?")
    return name if set(told.split("&")) == _AS_CODED.get(name) else value
