"""The commands by name, and the entry point: whatever goes wrong is one line and an exit code.

0: done. 1: a defect of shoal, or no memory left. 2: bad input. 3: a cell of a sweep failed. 130:
Ctrl-C. 141: the reader of the output went away.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal import __version__
from shoal.cli.benchmark import benchmark
from shoal.cli.compare import compare
from shoal.cli.compress import compress, compress_flags
from shoal.cli.demo import demo
from shoal.cli.export import export
from shoal.cli.figure import figure
from shoal.cli.inspect import inspect
from shoal.cli.params import as_flags, as_options, with_flags
from shoal.cli.push import push
from shoal.cli.recipes import recipes
from shoal.cli.report import report
from shoal.cli.reproduce import reproduce
from shoal.cli.robustness import robustness
from shoal.cli.screen import Interrupted, is_main_process
from shoal.cli.sweep import sweep, with_bare_flags
from shoal.cli.twin import twin
from shoal.errors import ConfigError, OptionError, ShoalError, one_line

_COMPLETING = "_SHOAL_COMPLETE"
_HELP = ["-h", "--help"]
_OF_FILES = ("sweep", "reproduce")
"""The commands whose runs have their options from a file, and not from flags."""

# What the parser raises for a wrong command line. Older releases of typer take it from click,
# newer ones bring their own; it is an ancestor of typer's public error in both.
_UsageError = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the words after the program's name, by default this process's; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    with _quiet_libraries(debug):
        try:
            code = _run(words)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            # The reader, such as `| head`, left; Python would complain at exit.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except BaseException as error:
            if isinstance(error, SystemExit) and not _own_code(error):
                # A library's way out, such as rich's for a broken pipe.
                return error.code if isinstance(error.code, int) else 1
            message, code = _explain(error)
            if is_main_process() or debug:
                if debug and not isinstance(error, Interrupted | KeyboardInterrupt):
                    traceback.print_exc()
                with suppress(OSError):
                    print(f"shoal: {message}", file=sys.stderr)
            return code


def _build_app(words: Sequence[str]) -> typer.Typer:
    """Return the commands.

    Only `compress` itself has its flags, which come from the methods: the list of commands need
    not wait for these.
    """
    app = typer.Typer(
        name="shoal",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": _HELP},
        epilog="Begin with `shoal demo`: it needs no data and no model, and takes 2 to 4 minutes.",
    )
    app.callback()(_shoal)
    wanted = "compress" in words or _COMPLETING in os.environ
    helped = [] if {*_HELP, "--help-all"}.isdisjoint(words) else ["--criterion"]
    named = [_named(flag, words) for flag in ("--method", "--task", *helped)]
    flags = compress_flags(*named) if wanted else []
    if _COMPLETING in os.environ:
        flags = [replace(flag, shown=True) for flag in flags]
    first = (demo, inspect, with_flags(compress, flags), benchmark, report)
    for command in (*first, compare, twin, sweep, reproduce, export, push, recipes, robustness):
        app.command()(command)
    app.add_typer(figure)
    return app


def _named(wanted: str, words: Sequence[str]) -> str | None:
    """Return the method, task or criterion that a command line names: its options are shown."""
    for word, following in zip(words, [*words[1:], None], strict=True):
        flag, equals, value = word.partition("=")
        if flag == wanted:
            return value if equals else following
    return None


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"shoal {__version__}")
        raise typer.Exit


def _shoal(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show tracebacks and warnings; anywhere on the line."),
    ] = False,
) -> None:
    """Make trained neural networks shallower and really faster, with proof."""


def _run(words: list[str]) -> int:
    """Parse and run; errors come out as exceptions, apart from Ctrl-C between commands."""
    command = _said_plainly(typer.main.get_command(_build_app(words)))
    words = with_bare_flags(words) if words[0] in _OF_FILES else words
    try:
        code = command.main(args=words, prog_name="shoal", standalone_mode=False)
    except ShoalError as error:
        own = _flags(getattr(command, "commands", {}).get(words[0], command))
        text = str(error)
        if isinstance(error, OptionError):
            flag = f"--{error.option.replace('_', '-')}"
            # Else an option of a criterion, say, which follows its name.
            text = text.replace(error.option, flag, 1) if flag in own else text
        if words[0] in _OF_FILES:
            text = as_options(text, own)
        if text == str(error):
            raise
        raise ConfigError(text) from error
    if code == 130:  # the parser has swallowed a KeyboardInterrupt
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _said_plainly(command: Any) -> Any:
    """Return a command whose help gives no type to flags without a value; so those below it."""
    asks = command.get_help_option(typer.Context(command, help_option_names=_HELP))
    for parameter in (*command.params, asks):
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    for below in getattr(command, "commands", {}).values():
        _said_plainly(below)
    return command


def _flags(command: Any) -> set[str]:
    """Return the flags of a command and of those below it."""
    own = {flag for parameter in command.params for flag in parameter.opts}
    return own.union(*map(_flags, getattr(command, "commands", {}).values()))


def _explain(error: BaseException) -> tuple[str, int]:
    """Return the line and the exit code for an error."""
    if isinstance(error, ShoalError):
        return as_flags(one_line(str(error))), 2
    if isinstance(error, _UsageError):
        message = one_line(error.format_message())  # type: ignore[attr-defined]
        path = getattr(getattr(error, "ctx", None), "command_path", "shoal")
        return f"{message.rstrip('.')} (see `{path} --help`)", 2
    if isinstance(error, Interrupted):
        return str(error), 130
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, typer.Abort):
        return "aborted", 1
    kind = type(error).__name__
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError":
        return (
            "out of memory: give smaller batches (--batch-size, or --batch where the command has "
            "that) or smaller images (--image-size)"
        ), 1
    text = one_line(str(error), limit=300)
    own = _own_code(error)
    if own:
        return f"{own} raised {kind}{': ' if text else ''}{text}: mend it (--debug shows more)", 2
    return (
        f"unexpected {kind}{': ' if text else ''}{text} (this is a defect of shoal: please report "
        "it with the output of the same command with --debug)"
    ), 1


def _own_code(error: BaseException) -> str:
    """Return the place in the user's own code that raised an error; "" if it was shoal's."""
    ours = Path(__file__).parents[1]
    others = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(ours):
            return ""
        if path.is_file() and not any(map(path.is_relative_to, others)):
            return f"'{frame.filename}', line {frame.lineno},"
    return ""


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
