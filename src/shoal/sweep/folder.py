"""A sweep's folder: which cells it has, how far each has come, and why one failed.

`cells/NAME` is the folder of a run, `logs/NAME.txt` what was said meanwhile, and `sweep.json` lists
the cells of the last call with their states, and those of earlier calls that are kept. What is done
is read from the runs' own folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from shoal.errors import RunError, ShoalError
from shoal.files import is_locked, locked, readable_errors, write_file
from shoal.sealed import read_sealed, sealed_text
from shoal.search.record import Record
from shoal.search.records import RunRecord
from shoal.search.run_files import RESULT, read_record, read_run, read_step
from shoal.sweep.cells import Cell

SWEEP = "sweep.json"
_KEPT = "kept"  # cells of earlier calls in that file


@dataclass(frozen=True)
class Glance(Record):
    """How far a run has come, as its folder tells.

    Attributes:
        step: the number of the last finished one; 0 is the dense network.
        removed: how many are gone in that network, or in the result.
        total: how many could go; None where that is not known yet.
        quality: on validation data, in points: of the last step, or of the result.
        dense: the same of the dense network.
        quality_unit: of these two.
        ratio: latency of dense over this.
        trusted: whether the machine was calm when it was measured.
        seconds: that all steps took.
        certain: whether it was calm, and the ratio's 95 % interval leaves out 1; so too where
            nothing was done yet.
    """

    step: int
    removed: int
    total: int | None
    quality: float
    dense: float
    quality_unit: str
    ratio: float
    trusted: bool
    seconds: float
    certain: bool = True


@dataclass(frozen=True)
class CellState(Record):
    """A cell as the sweep's folder lists it.

    Attributes:
        name: of the cell, and of its folder.
        given: the options by which the file tells it from other cells.
        job: all its options, flat.
        state: "waiting", "running", "done" or "failed".
        failed: why; of one that waits though it was done, why it does.
        tries: how many processes have worked on it in the last call.
        seconds: since its process began; 0 unless it is running.
        glance: how far it has come; None before its dense network is measured.
    """

    name: str
    given: Mapping[str, Any]
    job: Mapping[str, Any]
    state: str = "waiting"
    failed: str = ""
    tries: int = 0
    seconds: float = 0.0
    glance: Glance | None = None


class SweepFolder:
    """The folder of a sweep, which several calls may use one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: dict[str, tuple[object, Glance | None]] = {}

    def run(self, name: str) -> Path:
        """Return the folder of a cell's run."""
        return self.path / "cells" / name

    def log(self, name: str) -> Path:
        """Return the file of what was said while a cell was worked on."""
        return self.path / "logs" / f"{name}.txt"

    def lock(self) -> IO[str] | None:
        """Make the folder, and lock it for this process until what is returned is closed.

        Raises:
            FileError: it holds other files, another sweep is at work in it, or it cannot be made.
        """
        with readable_errors(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise RunError(f"'{self.path}' is a file: give a folder")
            held = [file for file in self.path.glob("*") if not file.name.startswith(".")]
            if held and not (self.path / SWEEP).exists():
                raise RunError(
                    f"'{self.path}' holds files that are not a sweep's: give an empty or a new "
                    "folder"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            return locked(self.path)

    def name_of(self, cell: Cell) -> str:
        """Return the name of a cell's folder, as it was when the folder was made."""
        kept = sorted((self.path / "cells").glob(f"*-{cell.digest}"))
        return kept[0].name if kept else cell.name

    def write(self, states: Sequence[CellState]) -> None:
        """Write down the states of all cells of a call; those that are kept stay."""
        self._write(self._kept(), states)

    def keep(self) -> None:
        """Keep the cells that are known by now in the list, whatever cells later calls have.

        Of a cell that a later call has again, that call's options and state count.

        Raises:
            FileError: another sweep is at work in the folder, or it cannot be written.
        """
        if not is_sweep(self.path):
            return
        held = self.lock()
        try:
            known: list[CellState] = []
            with suppress(ShoalError):  # of a damaged list the next call makes a new one
                known = self.read()
            self._write(list(map(_stopped, known)), ())  # nobody works on them now
        finally:
            if held is not None:
                held.close()

    def _kept(self) -> list[CellState]:
        with suppress(ShoalError, KeyError, TypeError):
            return [_state(one) for one in read_sealed(self.path / SWEEP).get(_KEPT, ())]
        return []

    def _write(self, kept: Sequence[CellState], states: Sequence[CellState]) -> None:
        names = {state.name for state in states}
        earlier = [state.to_dict() for state in kept if state.name not in names]
        values = {"cells": [state.to_dict() for state in states]}
        values |= {_KEPT: earlier} if earlier else {}
        write_file(self.path / SWEEP, sealed_text(values))

    def read(self) -> list[CellState]:
        """Return the cells that are kept, and those of the last call, as far as they have come.

        Raises:
            RunError: the folder is not a sweep's, or is damaged.
        """
        path = self.path / SWEEP
        if not is_sweep(self.path):
            raise RunError(f"'{self.path}' is not a sweep's folder: give the folder of a sweep")
        values = read_sealed(path)
        try:
            states = [_state(one) for one in (*values.get(_KEPT, ()), *values["cells"])]
        except (KeyError, TypeError) as error:
            raise RunError(f"'{path}' is damaged: give the sweep's command again") from error
        if any(state.state == "running" for state in states) and not is_locked(self.path):
            states = [_stopped(state) for state in states]
        return [self.as_it_is(state) for state in states]

    def as_it_is(self, state: CellState) -> CellState:
        """Return the state of a cell with how far its run has come."""
        glance = self.glance(state.name)
        if state.state == "failed":
            return replace(state, glance=glance)
        done = self.record(state.name)
        if done is not None and is_whole(done, state.job):
            state = replace(state, state="done", seconds=0.0, failed="")
            if len(done.steps) == 1:  # its result is the dense network
                failed = f"no step was made: {done.stopped}"
                state = replace(state, state="failed", failed=failed)
        elif state.state == "done":
            state = replace(state, state="waiting", failed=self._lost(state.name))
        return replace(state, glance=glance)

    def _lost(self, name: str) -> str:
        """Return why a run that was done is not: its folder is gone, or damaged."""
        run = self.run(name)
        try:
            read_run(run)
        except ShoalError as error:
            return str(error)
        return f"the run in '{run}' is not finished any more"

    def record(self, name: str) -> RunRecord | None:
        """Return the record of a finished run; None for one that is not, or is damaged."""
        with suppress(ShoalError, OSError):
            return read_record(self.run(name)) if (self.run(name) / RESULT).exists() else None
        return None

    def glance(self, name: str) -> Glance | None:
        """Return how far a run has come; its files are read again only if there are new ones."""
        folder = self.run(name)
        steps = sorted((folder / "steps").glob("[0-9]*"))
        ended = (folder / RESULT).exists()
        key = (len(steps), ended)
        if self._seen.get(name, (None, None))[0] != key:
            with suppress(ShoalError, OSError):  # a file that is being replaced right now
                self._seen[name] = (key, _glance(folder, steps))
        return self._seen.get(name, (None, None))[1]


def is_sweep(path: Path) -> bool:
    """Return whether a folder is a sweep's."""
    return (path / SWEEP).is_file()


def is_whole(record: RunRecord, job: Mapping[str, Any]) -> bool:
    """Whether a finished run holds all that a job asks for; int8 and energy may be asked later."""
    int8 = record.int8 is not None or not job.get("int8")
    return record.finished and int8 and bool(record.energy or not job.get("energy"))


def _stopped(state: CellState) -> CellState:
    """Return the state of a cell on which nobody works now."""
    return replace(state, state="waiting", seconds=0.0) if state.state == "running" else state


def _state(values: Mapping[str, Any]) -> CellState:
    glance = values.get("glance")
    made = None if glance is None else Glance.from_dict(glance)
    state = CellState.from_dict({**values, "glance": made})
    if Path(state.name).name != state.name:
        raise TypeError(f"'{state.name}' leads out of the sweep's folder")
    return state


def _glance(folder: Path, steps: Sequence[Path]) -> Glance | None:
    if (folder / RESULT).exists():
        record = read_record(folder)
        gain = {} if record.latency is None else record.latency.speedup
        last = record.chosen
        final, ratio = record.final, gain.get("median", last.latency_ratio)
        trusted = bool(gain.get("trusted", True)) if gain else not last.latency_doubt
        certain = told_apart(gain) if gain else not last.step or last.faster is not None
        dense, seconds = record.dense, sum(step.seconds for step in record.steps)
        number, removed, total = len(record.steps) - 1, record.removed, record.total
    elif steps:
        known = [read_step(place) for place in steps]
        last, dense = known[-1], known[0].metrics
        final, ratio, trusted = last.metrics, last.latency_ratio, not last.latency_doubt
        certain = not last.step or last.faster is not None
        seconds = sum(step.seconds for step in known)
        number, removed, total = last.step, last.removed, last.total
    else:
        return None
    return Glance(
        step=number,
        removed=removed,
        total=total,
        quality=final.top1_val,
        dense=dense.top1_val,
        quality_unit=final.quality_unit,
        ratio=ratio,
        trusted=trusted,
        seconds=seconds,
        certain=certain,
    )


def told_apart(ratio: Mapping[str, Any]) -> bool:
    """Return whether a ratio is trusted, and 1 lies outside its 95 % interval.

    Args:
        ratio: as `Ratio.to_dict` has it; what old records lack counts as certain.
    """
    low, high = ratio.get("low"), ratio.get("high")
    apart = low is None or high is None or not low <= 1.0 <= high
    return bool(ratio.get("trusted", True)) and apart
