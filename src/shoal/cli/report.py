"""`shoal report`: the steps of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.screen import print_json, result_console

__all__ = ["report"]


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --out folder of a run, finished or not.")
    ],
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Also show what was merged into what, what was kept and why."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Show all columns, however narrow the terminal is, and --merge."
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the record to standard output as JSON."),
    ] = False,
) -> None:
    """Show the steps of a run, and dense against result; write them as a page, report.html."""
    from shoal.cli.compress import keep_page, show_outcome
    from shoal.report import read_run, steps_table
    from shoal.report.terminal import print_table

    record = read_run(folder)
    keep_page(record)
    if as_json:
        print_json(record.to_dict())
        return
    print_table(result_console(), steps_table(record), verbose=verbose)
    show_outcome(record, merge=merge or verbose, verbose=verbose)
