"""The commands by name."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal import __version__
from shoal.cli.benchmark import benchmark
from shoal.cli.compare import compare
from shoal.cli.compress import compress
from shoal.cli.demo import demo
from shoal.cli.export import export
from shoal.cli.figure import figure
from shoal.cli.inspect import inspect
from shoal.cli.report import report
from shoal.cli.robustness import robustness

__all__ = ["app"]

app = typer.Typer(
    name="shoal",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with `shoal demo`: it needs no data and no model, and takes a minute or two.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"shoal {__version__}")
        raise typer.Exit


@app.callback()
def shoal(
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


app.command()(demo)
app.command()(inspect)
app.command()(compress)
app.command()(benchmark)
app.command()(report)
app.command()(compare)
app.command()(export)
app.command()(robustness)
app.add_typer(figure)
