"""The errors shoal raises on purpose, and the help their messages give.

Every message is one line that says what is wrong and what to do about it. The command line prints
it and exits with code 2; anything that is not a `ShoalError` is a defect of shoal.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CaptureError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "NameNotFoundError",
    "PlanError",
    "RunError",
    "ShoalError",
    "TrainingError",
    "missing_extra",
    "unknown_name",
]


class ShoalError(Exception):
    """The root of all errors that shoal raises on purpose."""


class CaptureError(ShoalError):
    """The model cannot be captured, or the captured network differs from it."""


class CheckpointError(ShoalError):
    """A file of weights is missing, damaged, or made for another model."""


class ConfigError(ShoalError):
    """An option has a value that makes no sense."""


class DataError(ShoalError):
    """A data set is missing, empty, or not what a classifier needs."""


class NameNotFoundError(ShoalError):
    """A site, block, criterion, method or data set of that name does not exist."""


class PlanError(ShoalError):
    """A saved network is damaged, or does not belong to the given model."""


class RunError(ShoalError):
    """A run's folder cannot be used as asked."""


class TrainingError(ShoalError):
    """Training cannot go on: the loss is not finite, or a layer died."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> NameNotFoundError:
    """Return the error for a `name` that is none of the `known` ones, with the nearest of them.

    Args:
        what: the kind of thing, in the singular ("site", "criterion").
        name: the name as the user gave it.
        known: the valid names.
    """
    choices = list(known)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    if near:
        hint = "did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    elif choices:
        shown = ", ".join(choices[:8]) + (", …" if len(choices) > 8 else "")
        hint = f"choose from: {shown}"
    else:
        hint = f"there is no {what} to choose from"
    return NameNotFoundError(f"unknown {what} '{name}': {hint}")


def missing_extra(package: str, extra: str, purpose: str) -> ShoalError:
    """Return the error for an optional `package` that is not installed."""
    return ShoalError(
        f"{purpose} needs the package '{package}', which is not installed: "
        f"run `pip install 'shoal[{extra}]'`"
    )
