"""Several calls for a target, cell by cell, into one folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shoal.errors import BusyError
from shoal.sweep import CellState, SweepFolder

A, B, C = (CellState(name, {"seed": name}, {"seed": name}) for name in "abc")


def names(folder: SweepFolder) -> list[str]:
    return [state.name for state in folder.read()]


def test_a_folder_lists_the_last_call_and_what_was_kept(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    folder.keep()  # there is nothing yet
    folder.write([A])
    folder.write([B])
    assert names(folder) == ["b"]  # a sweep's file changed: the former cells are no more its own
    folder.keep()
    assert names(folder) == ["b"]
    for _ in range(2):  # a call writes many times
        folder.write([C])
    assert names(folder) == ["b", "c"]
    folder.keep()
    folder.write([A, replace(B, job={"seed": "new"})])
    assert names(folder) == ["c", "a", "b"]
    assert folder.read()[2].job == {"seed": "new"}


def test_what_is_kept_has_its_state_but_nobody_works_on_it(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    folder.write([replace(A, state="running", seconds=3.0), replace(B, state="failed", failed="x")])
    folder.keep()
    folder.write([C])
    kept = [(one.state, one.seconds, one.failed) for one in folder.read()]
    assert kept == [("waiting", 0.0, ""), ("failed", 0.0, "x"), ("waiting", 0.0, "")]


def test_a_damaged_list_is_made_anew(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    folder.write([A])
    folder.keep()
    path = tmp_path / "sweep.json"
    path.write_text(path.read_text().replace('"a"', '"x"'))
    folder.keep()
    folder.write([B])
    assert names(folder) == ["b"]


def test_nothing_is_kept_under_the_hands_of_another(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    folder.write([A])
    held = folder.lock()
    assert held is not None
    try:
        with pytest.raises(BusyError):
            SweepFolder(tmp_path).keep()
    finally:
        held.close()
    folder.keep()
    assert names(folder) == ["a"]
