"""The commands by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

import typer

from shoal import __version__
from shoal.cli.benchmark import benchmark
from shoal.cli.compare import compare
from shoal.cli.compress import compress, compress_flags
from shoal.cli.demo import demo
from shoal.cli.export import export
from shoal.cli.figure import figure
from shoal.cli.flags import with_flags
from shoal.cli.inspect import inspect
from shoal.cli.report import report
from shoal.cli.robustness import robustness

__all__ = ["build_app"]

_COMPLETING = "_SHOAL_COMPLETE"


def build_app(words: Sequence[str] = ()) -> typer.Typer:
    """Return the commands.

    Args:
        words: of the command line. Only `compress` itself has its flags, which come from the
            methods: the list of commands need not wait for these.
    """
    app = typer.Typer(
        name="shoal",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="Begin with `shoal demo`: it needs no data and no model, and takes a minute or two.",
    )
    app.callback()(_shoal)
    wanted = "compress" in words or _COMPLETING in os.environ
    flags = compress_flags(_method_in(words)) if wanted else []
    for command in (demo, inspect, with_flags(compress, flags), benchmark, report, compare, export):
        app.command()(command)
    app.command()(robustness)
    app.add_typer(figure)
    return app


def _method_in(words: Sequence[str]) -> str | None:
    """Return the method that a command line names; its options are flags then."""
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == "--method":
            return following
        if word.startswith("--method="):
            return word.partition("=")[2]
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
