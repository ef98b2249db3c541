"""Cells in processes of this machine."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import shoal.sweep.pool as pool
from shoal.sweep import cells_of
from shoal.sweep.pool import Ended, Processes
from shoal.sweep.work import Work, as_line
from sweep_checks import SPEC


def work(folder: Path) -> Work:
    (cell,) = cells_of({**SPEC, "method": "easier", "seed": 0, "checkpoint": "nowhere.pth"})
    run, log = str(folder / "run"), str(folder / "logs" / "log.txt")
    return Work(cell.name, cell.job.to_dict(), run, log, str(folder))


def ended(processes: Processes) -> Ended:
    while not (found := processes.ended()):
        time.sleep(0.01)
    return found[0]


@pytest.mark.slow
def test_a_process_tells_why_its_cell_failed(tmp_path: Path) -> None:
    one = work(tmp_path)
    with Processes(1) as processes:
        assert processes.free
        processes.start(one)
        assert not processes.free
        found = ended(processes)
    assert found.name == one.name
    assert "nowhere.pth" in found.failed
    assert found.died == ""
    assert "failed: " in Path(one.log).read_text()


@pytest.mark.parametrize(
    ("code", "died"),
    [
        ("import os; os.kill(os.getpid(), 9)", "its process was ended by SIGKILL"),
        ("import sys; sys.exit(7)", "its process ended with code 7"),
        ("", "its process ended with code 0"),
    ],
)
def test_a_process_that_says_nothing_has_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, died: str
) -> None:
    monkeypatch.setattr(pool, "_CHILD", (sys.executable, "-c", code))
    with Processes(1) as processes:
        processes.start(work(tmp_path))
        assert ended(processes).died == died


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ('{"failed": ""}', Ended("cell")),
        ('{"failed": "no weights"}', Ended("cell", failed="no weights")),
        ('{"failed', Ended("cell", died="its process was ended by SIGKILL")),
    ],
)
def test_what_a_process_said_before_it_died_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, found: Ended
) -> None:
    """A library may bring it down after all its work is done."""
    code = f"import os; os.write(1, {words.encode()!r}); os.kill(os.getpid(), 9)"
    monkeypatch.setattr(pool, "_CHILD", (sys.executable, "-c", code))
    with Processes(1) as processes:
        processes.start(replace(work(tmp_path), name="cell"))
        assert ended(processes) == found


def test_no_process_outlives_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_CHILD", (sys.executable, "-c", "import time; time.sleep(600)"))
    begun = time.monotonic()
    with Processes(1) as processes:
        processes.start(work(tmp_path))
    assert time.monotonic() - begun < 300


@pytest.mark.slow
def test_a_process_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """Its standard input is then at its end, however the other one ended."""
    code = (
        "from shoal.sweep import work; work.do_work = lambda given: __import__('time').sleep(600)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", f"{code}; work.main()"], stdin=subprocess.PIPE, text=True
    )
    child.communicate(as_line(work(tmp_path)), timeout=300)
    assert child.returncode == 1
