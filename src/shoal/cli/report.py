"""`shoal report`: the steps of a run; and what other commands show of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import params
from shoal.cli.params import as_flags
from shoal.cli.screen import progress_console, show
from shoal.display import print_lines, to_type
from shoal.errors import ShoalError

if TYPE_CHECKING:
    from shoal.report import RunRecord


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --out folder of a run, finished or not.")
    ],
    merge: params.ShowMerge = False,
    verbose: params.Verbose = False,
    as_json: params.Json = False,
) -> None:
    """Show the steps of a run, and dense against result; write them as a page, report.html."""
    show_run(folder, steps=True, merge=merge or verbose, verbose=verbose, as_json=as_json)


def show_run(
    folder: Path,
    *,
    steps: bool = False,
    merge: bool = False,
    verbose: bool = False,
    as_json: bool = False,
) -> None:
    """Write a run's page into its folder, and print the run, finished or not."""
    from shoal import report as made
    from shoal.search.front import front
    from shoal.search.run_files import readable_twin

    record = made.read_run(folder)
    try:
        made.write_page(record)
    except ShoalError as error:  # the extra for pages is not installed, or the disk is full
        print_lines(progress_console(), f"note: {error}")
    tables = [made.steps_table(record), made.front_table(record)] if steps else []
    twin, damage = readable_twin(record)
    tables += made.outcome_tables(record, twin)
    if merge and record.merge is not None:
        tables += made.merge_tables(record.merge)
    said = [as_flags(line) for line in made.outcome_lines(record)]
    said += [f"note: {note}" for note in damage]
    lines = [*said, *_places(record, record.folder or folder)]
    first = made.slower_lines(record)
    value = {**record.to_dict(), "front": [step.step for step in front(record.steps)]}
    show(value, tables, lines, first=first, as_json=as_json, verbose=verbose)


def _places(record: RunRecord, folder: Path) -> list[str]:
    """Return where the networks of the result are; nothing before there is one."""
    if not record.finished:
        return []
    lines = [
        f"the result, to train on, is in '{folder / 'best'}'; in Python:\n  net = "
        f"shoal.load({str(folder)!r}, 'best')",
        f"merged, to use and to export, it is in '{folder / 'merged'}'; as a file:"
        + to_type("export", folder),
    ]
    page = folder / "report.html"
    return [*lines, f"all figures on one page: '{page}'"] if page.exists() else lines
