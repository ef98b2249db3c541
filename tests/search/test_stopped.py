"""Runs whose processes are stopped from outside, again and again, end like whole ones."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

import preloaded
import processes
import small_runs
from shoal.cli import main
from small_runs import result_of


def assert_alike(stopped: Path, whole: Path) -> None:
    assert result_of(stopped) == result_of(whole)
    leftovers = [path.name for path in stopped.rglob(".*") if path.name != ".lock"]
    assert leftovers == []
    for name in ("best", "merged"):
        one, other = (folder / name / "model.safetensors" for folder in (stopped, whole))
        assert one.read_bytes() == other.read_bytes()


def search(folder: Path) -> None:
    small_runs.run(folder, model=preloaded.NETWORK, dense_epochs=4, epochs=2)


@pytest.mark.long
def test_a_search_goes_on_after_kill_9_at_random_moments(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    first = processes.start(tmp_path, search, whole)
    begin = time.monotonic()
    assert first.wait() == 0, first.printed()
    length = time.monotonic() - begin
    rng, killed = random.Random(0), 0
    for _ in range(12):
        run = processes.start(tmp_path, search, stopped)
        time.sleep(rng.uniform(0.05, 0.35) * length)
        run.stop(signal.SIGKILL)
        if run.wait() == -signal.SIGKILL:
            killed += 1
        else:  # it was finished: other work had made the whole one slow
            shutil.rmtree(stopped)
            length /= 2
        if killed == 6:
            break
    assert killed >= 3
    last = processes.start(tmp_path, search, stopped)
    assert last.wait() == 0, last.printed()
    assert_alike(stopped, whole)


def command(folder: Path) -> None:
    small_runs.untimed_commands(pytest.MonkeyPatch())
    model = f"{small_runs.__file__}:build"
    raise SystemExit(main(
        ["compress", model, "--data", "digits", "--train-samples", "250", "--batch-size", "50",
         "--dense-epochs", "4", "--epochs", "2", "--max-drop", "100", "--precision", "fp32",
         "--out", str(folder)]
    ))  # fmt: skip


@pytest.mark.long
def test_a_command_goes_on_after_ctrl_c_in_each_step(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    first = processes.start(tmp_path, command, whole)
    assert first.wait() == 0, first.printed()
    for number in range(3):
        run = processes.start(tmp_path, command, stopped)
        until = stopped / "steps" / f"{number:03d}" / "step.json"
        while not until.exists():
            assert run.process.is_alive(), run.printed()
            time.sleep(0.02)
        run.stop(signal.SIGINT)
        assert run.wait() == 130, run.printed()
        screen = run.printed()
        last = screen.splitlines()[-1]
        assert last.startswith("shoal: interrupted: finished steps are kept in"), last
        assert "Traceback" not in screen
    again = processes.start(tmp_path, command, stopped)
    assert again.wait() == 0, again.printed()
    assert_alike(stopped, whole)
