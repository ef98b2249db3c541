"""The errors shoal raises on purpose, and the help their messages give.

Every message is one line that says what is wrong and what to do about it. The command line prints
it and exits with code 2; anything that is not a `ShoalError` is a defect of shoal.
"""

from __future__ import annotations

import difflib
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path


class ShoalError(Exception):
    """The root of all errors that shoal raises on purpose.

    Example:
        >>> import shoal
        >>> try:
        ...     shoal.data.load_data("didgits")
        ... except shoal.ShoalError as error:
        ...     print(error)
        unknown data set 'didgits': did you mean 'digits'?
    """

    def __str__(self) -> str:
        """Return the message as one line that any terminal shows, whatever names it repeats."""
        return printable(super().__str__())


class CaptureError(ShoalError):
    """The model cannot be captured, or the captured network differs from it."""


class CheckpointError(ShoalError):
    """A file of weights is missing, damaged, or made for another model."""


class ConfigError(ShoalError, ValueError):
    """Arguments that are wrong, or do not go together."""


class OptionError(ConfigError):
    """An option's value is of another type or out of its range."""

    def __init__(self, option: str, value: object, wanted: str) -> None:
        super().__init__(f"{option} is {value!r}: give {wanted}")
        self.option = option  # its name in Python, which the command line turns into its flag


class DamagedError(ShoalError):
    """A file that shoal wrote is not as it was written; whoever reads it says what to do."""


class DataError(ShoalError, ValueError):
    """A data set is missing, empty, or not what a classifier needs."""


class NameNotFoundError(ShoalError, LookupError):
    """A site, block, criterion, method or data set of that name does not exist."""


class FileError(ShoalError, OSError):
    """A file or folder cannot be read or written: it is missing, in use, or the disk is full."""


class NothingToRemoveError(ConfigError):
    """The network has nothing that the method could remove."""


class PlanError(ShoalError):
    """A saved network is damaged, or does not belong to the given model."""


class RunError(FileError):
    """A run's folder cannot be used as asked."""


class BusyError(RunError):
    """Another process is at work in a folder."""


class TrainingError(ShoalError):
    """Training cannot go on: the loss is not finite, or a layer died."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> NameNotFoundError:
    """Return the error for a `name` that is none of the `known` ones, with the nearest of them.

    `what` is the kind of thing, in the singular ("site", "criterion").
    """
    return NameNotFoundError(f"unknown {what} '{name}': {nearest_names(what, name, known)}")


def nearest_names(what: str, name: str, known: Iterable[str]) -> str:
    """Return which of the `known` names may be meant by one that is none of them, in words."""
    choices = list(known)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    if choices:
        return f"choose from: {', '.join(choices[:8])}{', …' if len(choices) > 8 else ''}"
    return f"there is no {what} to choose from"


def missing_extra(package: str, extra: str, purpose: str) -> ShoalError:
    """Return the error for an optional `package` that is not installed."""
    return ShoalError(
        f"{purpose} needs the package '{package}', which is not installed: "
        f"run `pip install 'shoal[{extra}]'`"
    )


def summary(error: BaseException) -> str:
    """Return an error in one line: its type, its message, and the user's line it came from."""
    trace = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in trace if not frame.filename.startswith("<frozen")]
    own = [frame for frame in frames if not _is_library(frame.filename)] or frames
    place = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    if isinstance(error, SyntaxError):  # its own text already ends with "(file.py, line 3)"
        place = ""
    message = one_line(str(error), limit=300)
    return f"{type(error).__name__}{': ' if message else ''}{message}{place}"


def _is_library(filename: str) -> bool:
    """Whether a file belongs to Python, to an installed package or to shoal."""
    path = Path(filename)
    is_installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    roots = (sysconfig.get_path("stdlib"), Path(__file__).parent)
    return is_installed or any(path.is_relative_to(root) for root in roots)


def printable(text: str) -> str:
    """Return a text as one line without what moves a terminal's cursor or colours it."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else "?" for sign in one_line(text))


def one_line(text: str, limit: int | None = None) -> str:
    """Return a text without line breaks, cut short where it is longer than `limit`."""
    text = " ".join(text.split())
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"
