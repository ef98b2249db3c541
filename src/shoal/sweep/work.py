"""What one process does with one cell, wherever it runs: the job, in the cell's own folder."""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console

import shoal.methods  # noqa: F401  registers them
from shoal.display import above, print_lines
from shoal.errors import BusyError, ShoalError, summary
from shoal.extras.search_energy import meter_of
from shoal.search.job import job_of
from shoal.search.job_run import run_job

_WIDTH = 140  # of a log's lines
_AGAIN = 5.0  # seconds after which a folder in use is looked at again


@dataclass(frozen=True)
class Work:
    """A cell as it is handed to another process: plain values.

    Attributes:
        name: the cell's.
        job: the flat values of its job.
        folder: where it is done, the run's folder.
        log: the file for what is said meanwhile; each try is added to it.
        cwd: where relative paths begin.
        threads: of PyTorch on the CPU; None takes PyTorch's own number.
        number: of the try, from 1.
    """

    name: str
    job: Mapping[str, Any]
    folder: str
    log: str
    cwd: str
    threads: int | None = None
    number: int = 1


def do_work(work: Work) -> str:
    """Do a cell in this process, or go on with it; return why it failed, "" if it did not."""
    Path(work.log).parent.mkdir(parents=True, exist_ok=True)
    with (
        Path(work.log).open("a", encoding="utf-8", buffering=1) as log,
        warnings.catch_warnings(action="ignore"),
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        return _logged(work, log)


def _logged(work: Work, log: TextIO) -> str:
    console = Console(file=log, highlight=False, emoji=False, width=_WIDTH)
    say = partial(print_lines, console)
    say(f"try {work.number}: process {os.getpid()} on {platform.node()}")
    try:
        os.chdir(work.cwd)
        _do(work, console)
    except ShoalError as error:
        failed = str(error)
    except (Exception, SystemExit) as error:  # the user's code may end the process
        console.print_exception()
        failed = summary(error)
    else:
        return ""
    say(f"failed: {failed}")
    return failed


def _do(work: Work, console: Console) -> None:
    if work.threads is not None:
        torch.set_num_threads(work.threads)
    job = job_of(work.job, {})
    say = partial(print_lines, console)
    showing = above("shoal.report.progress:showing")
    while True:
        try:
            with showing(console) as listener:
                folder = Path(work.folder)
                record = run_job(job, folder, listener, meter=meter_of(job), say=say)
            break
        except BusyError as error:  # of an earlier call, whose process has not noticed its end yet
            say(f"{error}; looked at again in {_AGAIN:.0f} s")
            time.sleep(_AGAIN)
    with suppress(ShoalError):  # the extra for pages is not installed
        above("shoal.report.page:write_page")(record)


def main() -> None:
    """Do the work that the first line of standard input says; print why it failed as JSON.

    Whoever started the process keeps its standard input open: at its end the process ends too, so
    that nobody works in a folder that nobody waits for.
    """
    work = Work(**json.loads(sys.stdin.readline()))
    reply = os.dup(1)
    os.dup2(2, 1)  # what libraries written in C print goes to the log
    threading.Thread(target=_end_with_parent, daemon=True).start()
    failed = do_work(work)
    os.write(reply, json.dumps({"failed": failed}).encode())


def _end_with_parent() -> None:
    while os.read(0, 1):  # not by way of sys.stdin, whose lock Python's own end waits for
        pass
    os._exit(1)


def as_line(work: Work) -> str:
    """Return the line that `main` reads."""
    return json.dumps(asdict(work)) + "\n"
