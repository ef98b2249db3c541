"""What was measured beside what is published."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from shoal.errors import ShoalError
from shoal.published import Cell
from shoal.reproduce.plan import Plan
from shoal.search.records import RunRecord, Step
from shoal.search.run_files import read_run
from shoal.sweep import Cell as SweepCell
from shoal.sweep import CellState, SweepFolder


@dataclass(frozen=True)
class Row:
    """A published cell, or a run of which nothing is printed, and what was measured of it.

    Attributes:
        model: the network's name in the tables.
        data: the data set's.
        method: the method's, or "dense".
        variant: what is particular to it, as options.
        cell: what is published; None where nothing is.
        measured_on: the data here, as they were given; empty without data.
        removed: rectifiers or blocks that are gone in the measured networks; of the seeds, the
            least. None before there is one.
        accuracies: top-1 on test data of each seed, percent; on validation data without a test set.
        changes: of each seed the difference to its own dense network, points.
        macs_cut: less work than dense, percent, before merging, the mean; None where not known.
        training_speedup: time of an epoch, dense over this, the mean; None where not known.
        asked: how many seeds were asked for; there are figures of fewer where some runs failed,
            wait, or ended with less removed.
        state: "done", "waiting", "failed", "not reached" or "no data".
        why: of a failure.
    """

    model: str
    data: str
    method: str
    variant: str
    cell: Cell | None
    measured_on: str = ""
    removed: int | None = None
    accuracies: tuple[float, ...] = ()
    changes: tuple[float, ...] = ()
    macs_cut: float | None = None
    training_speedup: float | None = None
    asked: int = 1
    state: str = "waiting"
    why: str = ""

    @property
    def accuracy(self) -> float | None:
        """The mean over the seeds; None before there is one."""
        return statistics.fmean(self.accuracies) if self.accuracies else None

    @property
    def change(self) -> float | None:
        """The mean change over the seeds."""
        return statistics.fmean(self.changes) if self.changes else None

    @property
    def published(self) -> float | None:
        """The accuracy that is printed."""
        return None if self.cell is None else self.cell.accuracy

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "accuracy": self.accuracy, "change": self.change}


@dataclass(frozen=True)
class Found:
    """What a run has come to; `why` it failed."""

    record: RunRecord | None
    state: str
    why: str = ""


def rows(plan: Plan, folder: SweepFolder) -> list[Row]:
    """Return a row for each published cell of a plan, as far as its runs have come."""
    try:
        known = {state.name: state for state in folder.read()}
    except ShoalError:
        known = {}  # nothing was run yet
    made = []
    for wanted, cells in zip(plan.wanted, plan.cells, strict=True):
        found = [_found(folder, cell, known) for cell in cells]
        given = cells[0].job.data if cells else ""
        told = "&".join(f"{k}={v}" for k, v in wanted.options.items() if k in _TOLD)
        for cell in _once(wanted.cells):
            variant = (cell.variant or told) if cell.method != "dense" else ""
            about = Row(wanted.model, wanted.data, cell.method, variant, cell, given)
            made.append(_filled(about, found, cell.removed, has_data=bool(cells)))
        if not wanted.cells:
            about = Row(wanted.model, wanted.data, wanted.method, told, None, given)
            counts: list[int | None] = [*_counts(found)]
            for count in counts or [None]:
                made.append(_filled(about, found, count, has_data=bool(cells)))
    return made


_TOLD = ("rectifier", "criterion", "per_step")


def _once(cells: Sequence[Cell]) -> list[Cell]:
    """Return a cell for each count: a table of latencies has one a device."""
    by_count = {(cell.method, cell.variant, cell.removed): cell for cell in reversed(cells)}
    return [cell for cell in cells if by_count[cell.method, cell.variant, cell.removed] is cell]


def _counts(found: Sequence[Found]) -> list[int]:
    """Return what is removed in all runs, in order."""
    known = [{step.removed for step in one.record.steps} for one in found if one.record]
    return sorted(set.intersection(*known)) if known else []


def _found(folder: SweepFolder, cell: SweepCell, known: Mapping[str, CellState]) -> Found:
    """Return what a cell has come to, though the last call was for other cells."""
    name = folder.name_of(cell)
    state = known.get(name)
    if state is None:
        state = folder.as_it_is(CellState(name, cell.given, cell.job.to_dict()))
    try:
        record = read_run(folder.run(name))
    except ShoalError as error:
        if state.state == "done":
            return Found(None, "failed", str(error))
        record = None  # it has not begun
    return Found(record, state.state, state.failed)


def _filled(about: Row, found: Sequence[Found], count: int | None, *, has_data: bool) -> Row:
    """Return a row with what runs have come to where `count` are removed."""
    if not has_data:
        return replace(about, state="no data")
    pairs = [
        (one.record.steps[0], step)
        for one in found
        if one.record is not None and (step := _step(one.record, count)) is not None
    ]
    why = next((one.why for one in found if one.state == "failed"), "")
    ended = all(one.state == "done" for one in found)  # some may have ended with fewer removed
    if not pairs:
        state = "failed" if why else "not reached" if ended else "waiting"
        return replace(about, asked=len(found), state=state, why=why)
    return replace(
        about,
        asked=len(found),
        removed=min(step.removed for _, step in pairs),
        accuracies=tuple(_accuracy(step) for _, step in pairs),
        changes=tuple(_accuracy(step) - _accuracy(dense) for dense, step in pairs),
        macs_cut=statistics.fmean(100 * (1 - s.metrics.macs / d.metrics.macs) for d, s in pairs),
        training_speedup=_mean(
            [
                dense.epoch_seconds / step.epoch_seconds
                for dense, step in pairs
                if dense.epoch_seconds and step.epoch_seconds and step is not dense
            ]
        ),
        state="failed" if why else "done" if ended or len(pairs) == len(found) else "waiting",
        why=why,
    )


def _step(record: RunRecord, count: int | None) -> Step | None:
    """Return the step with as many removed; where a paper does not say, the last one."""
    if count is None:
        return record.steps[-1] if record.finished else None
    if count == 0:  # later steps may train, or prune weights, and remove nothing
        return record.steps[0]
    steps = [step for step in record.steps if step.removed == count]
    return steps[-1] if steps else None


def _accuracy(step: Step) -> float:
    tested = step.metrics.top1_test
    return step.metrics.top1_val if tested is None else tested


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
