"""The loop of a sweep, with cells that are done by copying a finished run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import shoal
import shoal.sweep.place as place
import shoal.sweep.run as loop
import small_runs
from shoal.errors import BusyError
from shoal.files import locked
from shoal.report.sweep_tables import state_words
from shoal.sweep import CellState, Sweep, SweepFolder, cells_of
from shoal.sweep.pool import Ended
from shoal.sweep.work import Work
from sweep_checks import SPEC, Copies, spec_file


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_PAUSE", 0.0)


def sweep(monkeypatch: pytest.MonkeyPatch, pool: Copies, out: Path, **changes: Any) -> Sweep:
    monkeypatch.setattr(place, "Processes", lambda jobs: pool)
    return shoal.sweep({**SPEC, **changes}, out=out)


def test_every_cell_is_done_once_and_not_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sweep(monkeypatch, Copies(), tmp_path / "out")
    assert [cell.state for cell in first.cells] == ["done"] * 4
    assert repr(first) == "<shoal sweep: 4 of 4 cells done>"
    again = Copies()
    second = sweep(monkeypatch, again, tmp_path / "out")
    assert again.works == []
    assert [cell.glance for cell in second.cells] == [cell.glance for cell in first.cells]


def test_a_changed_file_keeps_the_cells_that_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sweep(monkeypatch, Copies(), tmp_path / "out")
    pool = Copies()
    after = sweep(monkeypatch, pool, tmp_path / "out", seed=[1, 2], hours=9.0)
    assert [work.name.rpartition("-")[0].rpartition("-")[2] for work in pool.works] == ["seed2"] * 2
    kept = {cell.name for cell in before.cells} & {cell.name for cell in after.cells}
    assert len(kept) == 2
    # One more axis does not rename the folder of what was done without it.
    more = Copies()
    named = sweep(monkeypatch, more, tmp_path / "out", remove=[1, 2])
    assert len(more.works) == 4
    assert {cell.name for cell in before.cells} < {cell.name for cell in named.cells}


def test_a_cell_that_fails_does_not_stop_the_others_and_is_tried_again_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Copies({"easier-build-digits-seed1": ["no such weights"]})
    found = sweep(monkeypatch, pool, tmp_path / "out")
    assert [cell.state for cell in found.cells] == ["done", "failed", "done", "done"]
    assert found.failed[0].failed == "no such weights"
    assert len(pool.works) == 4
    listed = SweepFolder(tmp_path / "out").read()
    assert [cell.failed for cell in listed] == ["", "no such weights", "", ""]
    again = Copies()
    assert sweep(monkeypatch, again, tmp_path / "out").failed == ()
    assert len(again.works) == 1


def test_a_process_that_dies_is_started_again_so_many_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fate = {"easier": ["died", ""], "layer_pruning": ["died"]}
    pool = Copies(fate)
    found = sweep(monkeypatch, pool, tmp_path / "out", seed=0)
    assert [cell.tries for cell in found.cells] == [2, 3]
    assert [cell.failed for cell in found.cells] == [
        "",
        "its process was ended by SIGKILL, the last of 3 tries",
    ]


def test_a_process_that_dies_when_its_run_is_finished_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DiesLate(Copies):
        def _end(self, work: Work) -> Ended:
            return replace(super()._end(work), died="its process was ended by SIGSEGV")

    pool = DiesLate()
    found = sweep(monkeypatch, pool, tmp_path / "out", seed=0)
    assert [(cell.state, cell.failed, cell.tries) for cell in found.cells] == [("done", "", 1)] * 2
    assert len(pool.works) == 2


def test_a_cell_that_says_it_is_done_without_a_result_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.copytree", lambda *given: None)
    monkeypatch.setattr(loop, "_SEEN_WITHIN", 0.0)
    found = sweep(monkeypatch, Copies(), tmp_path / "out", seed=0, method="easier")
    assert found.cells[0].failed == "its folder does not hold a finished run"


def test_a_cell_whose_first_step_failed_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_runs.run(tmp_path / "run", remove=1, epochs=1, lr=1e30)
    monkeypatch.setattr("sweep_checks.finished", lambda: tmp_path / "run")
    found = sweep(monkeypatch, Copies(), tmp_path / "out", seed=0, method="easier")
    for cell in (*found.cells, *SweepFolder(tmp_path / "out").read()):
        assert cell.state == "failed"
        assert cell.failed.startswith("no step was made: step 1 failed: ")


def test_a_cell_that_is_done_by_a_later_try_no_longer_says_that_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    folder = SweepFolder(out)
    small_runs.run(tmp_path / "run", remove=1, epochs=1, lr=1e30)
    with monkeypatch.context() as patch:
        patch.setattr("sweep_checks.finished", lambda: tmp_path / "run")
        (failed,) = sweep(patch, Copies(), out, seed=0, method="easier").cells
    assert failed.state == "failed"
    begun: list[str] = []

    class Goes(Copies):
        def start(self, work: Work) -> None:
            begun.append(folder.read()[0].name)
            shutil.rmtree(work.folder)
            super().start(work)

    (found,) = sweep(monkeypatch, Goes(), out, seed=0, method="easier").cells
    assert begun
    assert (found.state, found.failed) == ("done", "")
    assert state_words(found) == "done"


def test_a_cell_whose_folder_is_gone_or_damaged_waits_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = sweep(monkeypatch, Copies(), tmp_path / "out", seed=0)
    folder = SweepFolder(tmp_path / "out")
    assert [cell.state for cell in folder.read()] == ["done", "done"]
    one, other = (folder.run(cell.name) for cell in found.cells)
    shutil.rmtree(one)
    (other / "result.json").write_text("{")
    gone, damaged = SweepFolder(tmp_path / "out").read()
    assert (gone.state, damaged.state) == ("waiting", "waiting")
    assert f"there is no folder '{one}'" in gone.failed
    assert str(other / "result.json") in damaged.failed


def test_a_cell_runs_only_while_a_process_is_at_work_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = cells_of({**SPEC, "seed": 0, "method": "easier"})
    folder = SweepFolder(tmp_path / "out")
    held = folder.lock()
    state = CellState(cell.name, cell.given, cell.job.to_dict(), "running", seconds=3.0)
    folder.write([state])
    assert [one.state for one in folder.read()] == ["running"]
    assert held is not None
    held.close()
    assert [(one.state, one.seconds) for one in folder.read()] == [("waiting", 0.0)]


def test_a_result_that_is_seen_late_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[Callable[[], object]] = []
    copy = shutil.copytree
    monkeypatch.setattr("shutil.copytree", lambda *given: late.append(lambda: copy(*given)))
    monkeypatch.setattr(loop.time, "sleep", lambda seconds: [late.pop()() for _ in late[:]])
    found = sweep(monkeypatch, Copies(), tmp_path / "out", seed=0, method="easier")
    assert found.cells[0].state == "done"


def test_two_calls_at_once_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = SweepFolder(tmp_path / "out").lock()
    with pytest.raises(BusyError, match="another process is at work"):
        sweep(monkeypatch, Copies(), tmp_path / "out")
    assert held is not None
    held.close()
    other = locked(tmp_path)
    assert other is not None
    other.close()


def test_a_folder_with_other_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(shoal.ShoalError, match="holds files that are not a sweep's"):
        sweep(monkeypatch, Copies(), tmp_path)


def test_the_folder_is_named_after_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(place, "Processes", lambda jobs: Copies())
    found = shoal.sweep(spec_file(tmp_path, seed=0, method="easier"))
    assert found.folder == tmp_path / "sweep"
    assert json.loads((found.folder / "sweep.json").read_text())["cells"][0]["state"] == "done"


@pytest.mark.parametrize("name", ["jobs", "threads", "tries"])
def test_numbers_are_checked(tmp_path: Path, name: str) -> None:
    with pytest.raises(shoal.ShoalError, match=f"{name} is 0: give a whole number, 1 or more"):
        shoal.sweep(SPEC, out=tmp_path, **{name: 0})
