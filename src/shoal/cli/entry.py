"""The entry point: runs a command and turns whatever goes wrong into one line and an exit code.

0: done. 1: a defect of shoal, or no memory left. 2: bad input. 130: Ctrl-C. 141: the reader of the
output went away.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import typer

from shoal.cli.app import build_app
from shoal.cli.screen import Interrupted, is_main_process
from shoal.errors import ConfigError, OptionError, ShoalError

__all__ = ["main"]

# What the parser raises for a wrong command line. Older releases of typer take it from click,
# newer ones bring their own; it is an ancestor of typer's public error in both.
_UsageError = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after the program's name; None takes those of this process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    with _quiet_libraries(debug):
        try:
            code = _run(words)
            sys.stdout.flush()
            return code
        except SystemExit as error:  # a library's way out, such as rich's for a broken pipe
            return error.code if isinstance(error.code, int) else 1
        except BrokenPipeError:
            return _reader_left()
        except BaseException as error:
            message, code = _explain(error)
            if is_main_process() or debug:
                if debug and not isinstance(error, Interrupted | KeyboardInterrupt):
                    traceback.print_exc()
                with suppress(OSError):
                    print(f"shoal: {message}", file=sys.stderr)
            return code


def _run(words: list[str]) -> int:
    """Parse and run; errors come out as exceptions, apart from Ctrl-C between commands."""
    command = typer.main.get_command(build_app(words))
    try:
        code = command.main(args=words, prog_name="shoal", standalone_mode=False)
    except OptionError as error:
        flag = f"--{error.option.replace('_', '-')}"
        if flag not in _flags(command):  # an option of a criterion, say, which follows its name
            raise
        raise ConfigError(str(error).replace(error.option, flag, 1)) from error
    if code == 130:  # the parser has swallowed a KeyboardInterrupt
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _flags(command: Any) -> set[str]:
    """Return the flags of a command and of those below it."""
    own = {flag for parameter in command.params for flag in parameter.opts}
    return own.union(*map(_flags, getattr(command, "commands", {}).values()))


def _explain(error: BaseException) -> tuple[str, int]:
    """Return the line and the exit code for an error."""
    if isinstance(error, ShoalError):
        return _as_flags(_one_line(str(error))), 2
    if isinstance(error, _UsageError):
        return _explain_usage(error)
    if isinstance(error, Interrupted):
        return str(error), 130
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, typer.Abort):
        return "aborted", 1
    kind = type(error).__name__
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError":
        return "out of memory: give a smaller --batch-size or a smaller --image-size", 1
    text = _one_line(str(error), limit=300)
    return (
        f"unexpected {kind}{': ' if text else ''}{text} (this is a defect of shoal: please report "
        "it with the output of the same command with --debug)"
    ), 1


def _as_flags(text: str) -> str:
    """Return a library's line with `skip_broken=True` as `--skip-broken`."""
    return re.sub(r"\b([a-z_]+)=True\b", lambda found: f"--{found[1].replace('_', '-')}", text)


def _explain_usage(error: BaseException) -> tuple[str, int]:
    message = _one_line(error.format_message())  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "shoal")
    return f"{message.rstrip('.')} (see `{path} --help`)", 2


def _one_line(text: str, limit: int | None = None) -> str:
    line = " ".join(text.split())
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def _reader_left() -> int:
    """End quietly when a pipe such as `| head` was closed; Python would complain at exit."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
    return 141


@contextmanager
def _quiet_libraries(debug: bool) -> Iterator[None]:
    """Keep the libraries' warnings off the screen, unless they are looked for."""
    if debug:
        yield
        return
    # The C++ parts of PyTorch read this when they are loaded.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
