"""Where the commands write, and how they say that they were interrupted."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from shoal.display import print_lines

if TYPE_CHECKING:
    from shoal.report.table import Table

_PLAIN_WIDTH = 140  # where the output is a file or a pipe, whose width nobody knows


class Interrupted(Exception):
    """The user pressed Ctrl-C; the message says what is kept and how to resume."""


def is_main_process() -> bool:
    """Return whether this process is the one that prints, without starting anything."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return bool(distributed.get_rank() == 0)
    return os.environ.get("RANK", "0") == "0"


def progress_console() -> Console:
    """Return the console for everything on the way there: standard error."""
    return _console(sys.stderr)


def say(*lines: str) -> None:
    """Print lines to standard error."""
    print_lines(progress_console(), *lines)


def _console(stream: TextIO) -> Console:
    fixed = stream.isatty() or "COLUMNS" in os.environ
    return Console(
        file=stream,
        highlight=False,
        emoji=False,  # `:x:` in a path is no emoji
        quiet=not is_main_process(),
        width=None if fixed else _PLAIN_WIDTH,
    )


def show(
    value: Any = None,
    tables: Iterable[Table] = (),
    lines: Iterable[str] = (),
    *,
    first: Iterable[str] = (),
    as_json: bool = False,
    verbose: bool = False,
) -> None:
    """Print what the user asked for to standard output: a value as JSON, or tables and lines.

    The lines of `first` come before the tables.
    """
    if as_json:
        if is_main_process():
            print(json.dumps(value, indent=2))
        return
    from shoal.report.terminal import print_table

    console = _console(sys.stdout)
    print_lines(console, *first)
    for table in tables:
        print_table(console, table, verbose=verbose)
    print_lines(console, *lines)
