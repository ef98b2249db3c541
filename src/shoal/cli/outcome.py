"""What a command shows of a run: its tables, its page, and where its networks are."""

from __future__ import annotations

from pathlib import Path

from shoal.cli.screen import print_json, print_lines, progress_console, result_console
from shoal.errors import ShoalError
from shoal.report import (
    RunRecord,
    merge_tables,
    outcome_lines,
    outcome_tables,
    read_run,
    steps_table,
    write_page,
)
from shoal.report.terminal import print_table

__all__ = ["show_run"]


def show_run(
    folder: Path,
    *,
    steps: bool = False,
    merge: bool = False,
    verbose: bool = False,
    as_json: bool = False,
) -> None:
    """Write a run's page into its folder, and print the run.

    Args:
        folder: the run's, finished or not.
        steps: whether to show every step.
        merge: whether to show what was merged, and what was kept and why.
        verbose: whether to show all columns, however narrow the terminal is.
        as_json: print the record instead, and nothing else.

    Raises:
        RunError: the folder is not a run's, has no finished step yet, or is damaged.
    """
    record = read_run(folder)
    try:
        write_page(record)
    except ShoalError as error:  # the extra for pages is not installed, or the disk is full
        print_lines(progress_console(), f"note: {error}")
    if as_json:
        print_json(record.to_dict())
        return
    tables = [*([steps_table(record)] if steps else []), *outcome_tables(record)]
    if merge and record.merge is not None:
        tables += merge_tables(record.merge)
    console = result_console()
    for table in tables:
        print_table(console, table, verbose=verbose)
    print_lines(console, *outcome_lines(record), *_places(record, record.folder or folder))


def _places(record: RunRecord, folder: Path) -> list[str]:
    """Return where the networks of the result are; nothing before there is one."""
    if not record.finished:
        return []
    lines = [
        f"the result, to train on, is in '{folder / 'best'}'; in Python: "
        f"net = shoal.load({str(folder)!r}, 'best')",
        f"merged, to use and to export, it is in '{folder / 'merged'}'; as a file: "
        f"shoal export {folder}",
    ]
    page = folder / "report.html"
    return [*lines, f"all figures on one page: '{page}'"] if page.exists() else lines
