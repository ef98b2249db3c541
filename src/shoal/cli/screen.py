"""Where the commands write, and how they say that they were interrupted."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

from rich.console import Console

__all__ = [
    "Interrupted",
    "is_main_process",
    "print_json",
    "print_lines",
    "progress_console",
    "result_console",
]

_PLAIN_WIDTH = 140  # where the output is a file or a pipe, whose width nobody knows


class Interrupted(Exception):
    """The user pressed Ctrl-C; the message says what is kept and how to resume."""


def is_main_process() -> bool:
    """Return whether this process is the one that prints, without starting anything."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return bool(distributed.get_rank() == 0)
    return os.environ.get("RANK", "0") == "0"


def result_console() -> Console:
    """Return the console for what the user asked for: standard output."""
    return _console(sys.stdout)


def progress_console() -> Console:
    """Return the console for everything on the way there: standard error."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    fixed = stream.isatty() or "COLUMNS" in os.environ
    return Console(
        file=stream,
        highlight=False,
        quiet=not is_main_process(),
        width=None if fixed else _PLAIN_WIDTH,
    )


def print_lines(console: Console, *lines: str) -> None:
    """Print lines as they are; the terminal wraps them, so that a path or a command stays whole."""
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Write a value to standard output as JSON, and nothing else."""
    if is_main_process():
        print(json.dumps(value, indent=2))
