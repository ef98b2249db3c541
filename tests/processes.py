"""Processes that start in no time: forked from a server that has imported everything heavy.

The server computes no gradient, so that its children can; it ends with the process of the tests.
What a child runs is a function that it can import, in a test's own file for instance.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@functools.cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ALONE.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return context


@dataclass(frozen=True)
class Started:
    """A process at work, with what it prints in two files."""

    process: ForkServerProcess
    out: Path
    err: Path

    def stop(self, number: signal.Signals) -> None:
        """Send a signal, if it has not ended."""
        assert self.process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def wait(self, seconds: float = 240) -> int:
        """Return its exit code once it has ended, or minus the signal that ended it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still at work after {seconds:g} s: {self.printed()}")
        return self.process.exitcode

    def printed(self) -> str:
        """Return the end of what it printed."""
        return self.out.read_text()[-2000:] + self.err.read_text()[-4000:]


def start(
    folder: Path, work: Callable[..., object], *args: object, env: Mapping[str, str] | None = None
) -> Started:
    """Start a process that calls a function, with what it prints in files of a folder.

    Args:
        folder: gets the files.
        work: the function; what it returns is lost, an error or `SystemExit` is the exit code.
        args: what it is called with.
        env: variables that only this process sees.
    """
    number = len(list(folder.glob("process-*.out")))
    out, err = (folder / f"process-{number}.{kind}" for kind in ("out", "err"))
    out.touch(), err.touch()
    given = {**os.environ, **ALONE, **(env or {})}
    process = _context().Process(target=_work, args=(given, out, err, work, args))
    process.start()
    return Started(process, out, err)


def grouped(count: int, folder: Path, work: Callable[..., object], *args: object) -> list[Started]:
    """Run a function in processes that form a group, as a launcher starts them; all end well.

    Returns:
        them, by rank.
    """
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared = {**place, "WORLD_SIZE": str(count)}
    group = [
        start(folder, work, *args, env={**shared, "RANK": str(n), "LOCAL_RANK": str(n)})
        for n in range(count)
    ]
    codes = [started.wait() for started in group]
    assert codes == [0] * count, "\n".join(started.printed() for started in group)
    return group


def free_port() -> int:
    """Return the number of a port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _work(
    env: Mapping[str, str], out: Path, err: Path, work: Callable[..., object], args: tuple[Any, ...]
) -> None:
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY), number)
    import torch.distributed as dist

    try:
        work(*args)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
