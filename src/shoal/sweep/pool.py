"""Where cells run: something that starts them and says which have ended. And here, in processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from shoal.sweep.work import Work, as_line


@dataclass(frozen=True)
class Ended:
    """What became of a cell's process.

    Attributes:
        name: of the cell.
        failed: why the cell failed; empty if it did not.
        died: how the process died before it could say anything; empty if it did not.
    """

    name: str
    failed: str = ""
    died: str = ""


class Pool(Protocol):
    """Runs cells, each in a process of its own. A context: at its end none of them runs on."""

    where: str  # in words, for whoever looks on

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    @property
    def free(self) -> bool:
        """Whether another cell may be handed over now."""
        ...

    def start(self, work: Work) -> None:
        """Hand over a cell."""
        ...

    def ended(self) -> list[Ended]:
        """Return what has ended since the last call."""
        ...


_CHILD = (sys.executable, "-c", "from shoal.sweep.work import main; main()")


class Processes:
    """Runs cells on this machine, so many at a time.

    Args:
        jobs: how many.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.where = "here" if jobs == 1 else f"here, {jobs} at a time"
        self._running: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.communicate()
        self._running.clear()

    @property
    def free(self) -> bool:
        """Whether fewer than `jobs` are running."""
        return len(self._running) < self.jobs

    def start(self, work: Work) -> None:
        """Start a process for a cell; it ends with this one, however this one ends."""
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        if work.threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(work.threads))
        log = Path(work.log)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as said:
            process = subprocess.Popen(
                _CHILD,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the sweep, which ends its processes
            )
        assert process.stdin is not None
        self._running[work.name] = process
        try:
            process.stdin.write(as_line(work))
            process.stdin.flush()
        except BrokenPipeError:  # it has died; `ended` says so
            pass

    def ended(self) -> list[Ended]:
        """Return the cells whose processes have ended."""
        done = [name for name, process in self._running.items() if process.poll() is not None]
        return [_outcome(name, self._running.pop(name)) for name in done]


def _outcome(name: str, process: subprocess.Popen[str]) -> Ended:
    said, _ = process.communicate()
    with suppress(ValueError, KeyError, TypeError):  # it has said so, whatever ended it after that
        return Ended(name, failed=json.loads(said)["failed"])
    code = process.returncode
    if code < 0:
        return Ended(name, died=f"its process was ended by {signal.Signals(-code).name}")
    return Ended(name, died=f"its process ended with code {code}")
