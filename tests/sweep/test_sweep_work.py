"""What a process does with a cell, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import shoal.sweep.work as work
from shoal.files import locked
from shoal.sweep import cells_of
from shoal.sweep.work import Work, do_work
from small_runs import FakeGauge
from sweep_checks import SPEC


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    monkeypatch.setattr("shoal.search.compress.Gauge", lambda data, *rest: FakeGauge(data.val))
    monkeypatch.chdir(tmp_path)
    return of(tmp_path)


def of(folder: Path, **changes: Any) -> Work:
    (cell,) = cells_of({**SPEC, "method": "easier", "seed": 0, **changes})
    return Work(
        cell.name, cell.job.to_dict(), str(folder / "run"), str(folder / "log.txt"), str(folder)
    )


def test_a_cell_is_a_run_with_a_page_and_a_log_and_again_it_is_finished(
    one: Work, tmp_path: Path
) -> None:
    assert do_work(one) == ""
    assert (tmp_path / "run" / "result.json").exists()
    assert (tmp_path / "run" / "report.html").exists()
    text = (tmp_path / "log.txt").read_text()
    assert text.startswith("try 1: process ")
    assert "step 1" in text
    before = (tmp_path / "run" / "steps" / "001" / "step.json").stat().st_mtime_ns
    assert do_work(one) == ""
    assert (tmp_path / "run" / "steps" / "001" / "step.json").stat().st_mtime_ns == before


def test_why_a_cell_failed_is_one_line(one: Work, tmp_path: Path) -> None:
    failed = do_work(of(tmp_path, checkpoint="nowhere.pth"))
    assert "nowhere.pth" in failed
    assert "\n" not in failed
    assert f"failed: {failed}" in (tmp_path / "log.txt").read_text()


def test_an_error_of_no_one_s_purpose_is_told_with_its_place(
    one: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object, **options: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(work, "run_job", broken)
    assert do_work(one).startswith("ZeroDivisionError: by zero (")
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_a_folder_that_a_dying_process_still_holds_is_waited_for(
    one: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    held = locked(tmp_path / "run")
    assert held is not None
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        held.close()

    monkeypatch.setattr(work.time, "sleep", sleep)
    assert do_work(one) == ""
    assert len(waited) == 1
