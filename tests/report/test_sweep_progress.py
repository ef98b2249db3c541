"""A sweep on the screen: lines in a file, a table on a terminal, at any width."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr
from typing import Any

import pytest
from rich.console import Console

from shoal.cli.screen import progress_console
from shoal.display import print_lines
from shoal.report.progress import console_in_python
from shoal.report.sweep_progress import cell_line, picture, showing
from shoal.report.sweep_tables import cells_table, count_words
from shoal.report.terminal import print_table
from shoal.sweep import CellState, Glance


def glance(**changes: Any) -> Glance:
    values: dict[str, Any] = {
        "step": 3, "removed": 3, "total": 13, "quality": 96.5, "dense": 97.0, "quality_unit": "%",
        "ratio": 1.25, "trusted": True, "seconds": 75.0,
    }  # fmt: skip
    return Glance(**values | changes)


def cell(number: int, **changes: Any) -> CellState:
    name = f"layer_pruning-cifar_resnet20-cifar10-seed{number}-0a1b2c3d"
    return CellState(name, {"seed": number}, {}, **changes)


WHY = "the loss is not finite at step 120: lower the learning rate, or use fp32"
CELLS = [
    cell(0, state="done", glance=glance()),
    cell(1, state="running", seconds=12.0, tries=2, glance=glance(step=1, removed=1)),
    cell(2, state="failed", failed=WHY),
    cell(3),
]


def test_a_line_says_what_is_new_and_nothing_is_said_twice() -> None:
    out = io.StringIO()
    with showing(Console(file=out, width=200)) as told:
        told.begun("here, 2 at a time", CELLS)
        told.now(CELLS)
        moved = [*CELLS[:3], cell(3, state="running")]
        told.now(moved)
        told.now([*moved[:3], cell(3, state="running", seconds=4.0)])
    assert out.getvalue().splitlines() == [
        "4 cells, 1 done, 1 failed, 1 running, 1 waiting; run here, 2 at a time",
        "layer_pruning-cifar_resnet20-cifar10-seed3: running",
    ]


def test_a_cell_says_how_far_it_has_come_or_why_it_failed() -> None:
    assert cell_line(CELLS[1]) == (
        "layer_pruning-cifar_resnet20-cifar10-seed1: running, try 2; step 1: removed 1/13, "
        "validation 96.50 %, 1.25 × as fast"
    )
    assert cell_line(CELLS[2]).endswith(f"failed: {WHY}")


def test_what_is_not_certain_is_marked_in_the_table_and_not_said_in_lines() -> None:
    close = cell(1, state="done", glance=glance(ratio=1.02, certain=False))
    assert "as fast" not in cell_line(close)
    assert "1.02 × ?" in cells_table([close]).texts()[0]


def test_a_reason_stands_behind_the_state_that_it_is_of() -> None:
    gone = cell(1, state="waiting", failed="there is no folder 'cells/a'")
    assert cell_line(gone).endswith("waiting: there is no folder 'cells/a'")


def test_the_table_says_state_reason_and_figures() -> None:
    table = cells_table(CELLS)
    title = "layer_pruning-cifar_resnet20-cifar10-seed"
    assert table.texts()[:3] == [
        [f"{title}0", "done", "3", "3/13", "96.50 %", "1.25 ×", "1 min 15 s"],
        [f"{title}1", "running, try 2", "1", "1/13", "96.50 %", "1.25 ×", "12.0 s"],
        [f"{title}2", f"failed: {WHY}", "–", "–", "–", "–", "–"],
    ]
    assert count_words(CELLS) == "1 done, 1 failed, 1 running, 1 waiting"


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_width(width: int) -> None:
    out = io.StringIO()
    print_table(Console(file=out, width=width), cells_table(CELLS))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "failed" in out.getvalue()


def test_the_moving_table_shows_what_runs_first_where_not_all_have_room() -> None:
    many = [cell(number, state="done", glance=glance()) for number in range(40)]
    many[20] = cell(20, state="running")
    out = io.StringIO()
    Console(file=out, width=80).print(picture(many, 80, 16))
    lines = out.getvalue().splitlines()
    assert len(lines) <= 16
    assert max(map(len, lines)) <= 80
    assert any("running" in line for line in lines)
    assert "39 done, 1 running; 30 more have no room here" in lines[-1]


def test_a_name_with_colons_is_shown_as_it_is() -> None:
    out = io.StringIO()
    with redirect_stderr(out):
        print_lines(progress_console(), "the folder out:x:1")
        print_lines(console_in_python(), "the folder out:x:1")
    assert out.getvalue().splitlines() == ["the folder out:x:1"] * 2


def test_on_a_terminal_the_table_moves_and_is_cleared_away() -> None:
    out = io.StringIO()
    with showing(Console(file=out, width=80, height=20, force_terminal=True)) as told:
        told.begun("here", CELLS)
        told.now(CELLS)
        told.now([cell(0, state="done", glance=glance(quality=50.0)), *CELLS[1:]])
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "4 cells, run here" in plain
    assert "layer_pruning-…-cifar10-seed1" in plain
    assert max(map(len, plain.splitlines())) <= 80
