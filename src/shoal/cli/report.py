"""`shoal report`: the steps of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli import params

__all__ = ["report"]


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --out folder of a run, finished or not.")
    ],
    merge: params.ShowMerge = False,
    verbose: params.Verbose = False,
    as_json: params.Json = False,
) -> None:
    """Show the steps of a run, and dense against result; write them as a page, report.html."""
    from shoal.cli.outcome import show_run

    show_run(folder, steps=True, merge=merge or verbose, verbose=verbose, as_json=as_json)
