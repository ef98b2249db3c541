"""Runs that are stopped from outside, again and again; started by test_run.py.

Everything heavy is imported once, in a parent that computes no gradient: its children can then be
forked in no time, work, and be stopped.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import small_runs
from shoal.cli import main as shoal
from shoal.network import capture


def forked(work: Callable[[], int]) -> int:
    """Start a process that does some work and return its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = work()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a child; return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@functools.cache
def untrained() -> object:
    return capture(small_runs.build(), small_runs.digits().example_inputs(4)).copy()


def search(folder: Path) -> int:
    small_runs.run(folder, model=untrained(), dense_epochs=4, epochs=2)  # type: ignore[arg-type]
    return 0


def kill_again_and_again(home: Path) -> int:
    """Return how often a run was killed, by SIGKILL at random moments, before it finished."""
    begin = time.monotonic()
    assert ended(forked(lambda: search(home / "whole"))) == 0
    length = time.monotonic() - begin
    rng, killed = random.Random(0), 0
    for _ in range(12):
        child = forked(lambda: search(home / "stopped"))
        time.sleep(rng.uniform(0.05, 0.35) * length)
        os.kill(child, signal.SIGKILL)
        if ended(child) == -signal.SIGKILL:
            killed += 1
        else:  # it was finished: other work had made the whole one slow
            shutil.rmtree(home / "stopped")
            length /= 2
        if killed == 6:
            break
    assert ended(forked(lambda: search(home / "stopped"))) == 0
    return killed


def command(folder: Path, screen: Path) -> int:
    """Run the command line, with what it prints in a file."""
    model = f"{Path(small_runs.__file__)}:build"
    with screen.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        return shoal(
            ["compress", model, "--data", "digits", "--train-samples", "250", "--batch-size", "50",
             "--dense-epochs", "4", "--epochs", "2", "--max-drop", "100", "--precision", "fp32",
             "--out", str(folder)]
        )  # fmt: skip


def interrupt_again_and_again(home: Path) -> int:
    """Return how often the command line was interrupted, once after each of three steps."""
    screen = home / "screen.txt"
    assert ended(forked(lambda: command(home / "whole", screen))) == 0, screen.read_text()
    interrupted = 0
    for number in range(3):
        child = forked(lambda: command(home / "stopped", screen))
        until = home / "stopped" / "steps" / f"{number:03d}" / "step.json"
        while not until.exists():
            time.sleep(0.02)
        os.kill(child, signal.SIGINT)
        assert ended(child) == 130, screen.read_text()
        last = screen.read_text().splitlines()[-1]
        assert last.startswith("shoal: interrupted: finished steps are kept in"), last
        assert "Traceback" not in screen.read_text()
        interrupted += 1
    assert ended(forked(lambda: command(home / "stopped", screen))) == 0, screen.read_text()
    return interrupted


if __name__ == "__main__":
    small_runs.untimed_commands(pytest.MonkeyPatch())
    untrained()
    stop = {"kill": kill_again_and_again, "ctrl-c": interrupt_again_and_again}[sys.argv[1]]
    print(json.dumps({"stopped": stop(Path(sys.argv[2]))}))
