"""Run a sweep: what is done stays, the rest is started, and what dies is started again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import shoal.methods  # noqa: F401  registers them
from shoal.display import above
from shoal.errors import ConfigError, OptionError
from shoal.sealed import read_options
from shoal.search.compress import wants_progress
from shoal.sweep.cells import Cell, cells_of
from shoal.sweep.folder import CellState, SweepFolder
from shoal.sweep.place import Place
from shoal.sweep.pool import Ended, Pool
from shoal.sweep.work import Work
from shoal.user_paths import user_path

_PAUSE = 0.5  # seconds between two looks at the cells
_SEEN_WITHIN = 60.0  # seconds, in which what one machine wrote is seen on all: NFS keeps listings


class SweepListener:
    """Is told of a sweep's progress; this one ignores it. Subclass it to show something."""

    def begun(self, where: str, cells: Sequence[CellState]) -> None:
        """Called once, before anything is started; `where` says in words where the cells run."""

    def now(self, cells: Sequence[CellState]) -> None:
        """Called about twice a second with all cells as they are now."""


@dataclass(frozen=True)
class Sweep:
    """What became of a sweep.

    Attributes:
        folder: the sweep's; `cells/NAME` in it is the folder of a run.
        cells: all of them, in the order of the file.
    """

    folder: Path
    cells: tuple[CellState, ...]

    @property
    def failed(self) -> tuple[CellState, ...]:
        """The cells that failed, each with the reason in its `failed`."""
        return tuple(cell for cell in self.cells if cell.state == "failed")

    def __repr__(self) -> str:
        """Return how many cells are done."""
        done = sum(cell.state == "done" for cell in self.cells)
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"<shoal sweep: {done} of {len(self.cells)} cells done{failed}>"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {"folder": str(self.folder), "cells": [cell.to_dict() for cell in self.cells]}


# Long because each of its arguments is explained; the body is short.
def sweep(
    spec: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    jobs: int | None = None,
    *,
    threads: int | None = None,
    ray: str | None = None,
    slurm: Mapping[str, Any] | None = None,
    gpus_per_cell: float | None = None,
    tries: int = 3,
    listener: SweepListener | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Run a matrix of jobs, each in a process and a folder of its own.

    What is finished in the folder is not run again, and what was interrupted goes on. A cell that
    fails does not stop the others; called again, the failed ones are tried again.

    Args:
        spec: a YAML file, or what stands in one: the options of `shoal compress` by name, where a
            list means each of its values. See `cells_of`.
        out: the sweep's folder; by default the file's name without its ending.
        jobs: how many cells run at a time: 1 by default, on Ray in this machine as many as it has
            cores, and elsewhere as many as there is room for.
        threads: threads of each cell on the CPU; by default the cores divided by `jobs`, on a
            cluster 1 on Ray and whatever Slurm gives.
        ray: "local" to run on Ray in this machine, or the address of a Ray cluster.
        slurm: parameters of submitit to run on Slurm, such as {"partition": "gpu"}; see `OnSlurm`.
        gpus_per_cell: the share of a GPU that a cell gets on Ray; by default one where there is
            one. 0.25 lets four cells share a GPU.
        tries: how often a cell is started whose process dies.
        listener: told of the progress.
        progress: whether to show a table; by default on a terminal and in a notebook, unless there
            is a listener.

    Returns:
        All cells, each with its state, its folder's name and how far it has come.

    Raises:
        ShoalError: one line on what is wrong with the file, before anything is run.

    Example:
        >>> import shoal, tempfile
        >>> spec = {"model": "shoal:digits_resnet", "data": "digits", "epochs": [-1]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     shoal.sweep(spec, out=folder)
        Traceback (most recent call last):
        shoal.errors.OptionError: epochs is -1: give a whole number, 0 or more
    """
    for name, value in (("jobs", jobs), ("threads", threads), ("tries", tries)):
        if value is not None and (type(value) is not int or value < 1):
            raise OptionError(name, value, "a whole number, 1 or more")
    place = Place(jobs, threads, ray, slurm, gpus_per_cell)
    cells = cells_of(spec if isinstance(spec, Mapping) else read_options(spec))
    folder = SweepFolder(_out(spec, out))
    held = folder.lock()
    try:
        driver = _Driver(folder, place, tries)
        watched = nullcontext(listener) if listener else _shown_progress(progress)
        with watched as told:
            return Sweep(folder.path, tuple(driver.run(cells, told)))
    finally:
        if held is not None:
            held.close()


def _out(spec: str | Path | Mapping[str, Any], out: str | Path | None) -> Path:
    if out is None and isinstance(spec, Mapping):
        raise ConfigError("out is not given: name the sweep's folder")
    named = Path(Path(str(spec)).stem) if out is None else user_path(out)
    return Path.cwd() / named


def _shown_progress(wanted: bool | None) -> AbstractContextManager[SweepListener]:
    if not wants_progress(wanted):
        return nullcontext(SweepListener())
    shown: AbstractContextManager[SweepListener] = above(
        "shoal.report.sweep_progress:progress_in_python"
    )()
    return shown


class _Driver:
    """Runs cells somewhere until each is done or has failed."""

    def __init__(self, folder: SweepFolder, place: Place, tries: int) -> None:
        self.folder = folder
        self.place = place
        self.tries = tries
        self.states: dict[str, CellState] = {}
        self._handed: dict[str, int] = {}  # the bytes of its log when a cell was handed over
        self._since: dict[str, float] = {}  # when its process began

    def run(self, cells: Sequence[Cell], listener: SweepListener) -> list[CellState]:
        """Run what is not done, and return all."""
        for cell in cells:
            name = self.folder.name_of(cell)
            state = CellState(name, dict(cell.given), cell.job.to_dict())
            self.states[name] = self.folder.as_it_is(state)
        self._write()
        waiting = deque(name for name, state in self.states.items() if state.state != "done")
        if not waiting:  # Ray, say, need not be started for nothing
            return self._all()
        try:
            with self.place.open(self.folder.path) as pool:
                listener.begun(pool.where, self._all())
                while waiting or self._handed:
                    while waiting and pool.free:
                        self._start(waiting.popleft(), pool)
                    ended = pool.ended()
                    waiting += [one.name for one in ended if not self._settle(one)]
                    self._look()
                    listener.now(self._all())
                    if not ended:
                        time.sleep(_PAUSE)
        finally:
            for name in self._handed:
                self._set(name, state="waiting", seconds=0.0)
            self._write()
        return self._all()

    def _all(self) -> list[CellState]:
        return list(self.states.values())

    def _set(self, name: str, **changes: Any) -> None:
        self.states[name] = replace(self.states[name], **changes)

    def _write(self) -> None:
        self.folder.write(self._all())

    def _start(self, name: str, pool: Pool) -> None:
        log, tries = self.folder.log(name), self.states[name].tries + 1
        self._set(name, tries=tries, failed="")
        self._handed[name] = _size(log)
        pool.start(
            Work(
                name=name,
                job=self.states[name].job,
                folder=str(self.folder.run(name)),
                log=str(log),
                cwd=str(Path.cwd()),
                threads=self.place.threads,
                number=tries,
            )
        )

    def _settle(self, ended: Ended) -> bool:
        """Write down what became of a cell; return False if it is to be started again."""
        name = ended.name
        del self._handed[name]
        self._since.pop(name, None)
        self._set(name, state="waiting", seconds=0.0)
        if ended.died and self.folder.as_it_is(self.states[name]).state == "done":
            ended = replace(ended, died="")  # it died after its end
        tries, again = self.states[name].tries, False
        failed = ended.failed
        if ended.died:
            again = tries < self.tries
            failed = "" if again else f"{ended.died}, the last of {tries} tries"
        if failed:
            self._set(name, state="failed", failed=failed)
        self.states[name] = self._as_seen(name, wait=not failed and not again)
        if self.states[name].state == "waiting" and not again:  # it said that it was done
            self._set(name, state="failed", failed="its folder does not hold a finished run")
        self._write()
        return not again

    def _as_seen(self, name: str, *, wait: bool) -> CellState:
        """Return a cell as its folder says, which another machine's file system shows later."""
        until = time.monotonic() + (_SEEN_WITHIN if wait else 0.0)
        while True:
            found = self.folder.as_it_is(self.states[name])
            if found.state != "waiting" or time.monotonic() >= until:
                return found
            time.sleep(_PAUSE)

    def _look(self) -> None:
        """Find out how far the running cells have come."""
        now = time.monotonic()
        for name, size in self._handed.items():
            if name not in self._since and _size(self.folder.log(name)) > size:
                self._since[name] = now
                self._set(name, state="running")
                self._write()
            if name in self._since:
                seconds = now - self._since[name]
                self._set(name, seconds=seconds, glance=self.folder.glance(name))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
