"""Cells of a sweep put together over their seeds: the mean of each figure, and its deviation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from shoal.errors import ShoalError
from shoal.published import Cell
from shoal.search.published import published_of
from shoal.search.records import RunRecord
from shoal.search.run_files import twin_of
from shoal.sweep.cells import plain_text
from shoal.sweep.folder import CellState, SweepFolder, told_apart

_OWN = ("method", "model", "data", "seed")


@dataclass(frozen=True)
class Spread:
    """A figure over several seeds.

    Attributes:
        mean: of the seeds.
        deviation: the sample standard deviation; None of a single seed.
        count: of seeds.

    Example:
        >>> Spread.of([90.0, 92.0]).mean, round(Spread.of([90.0, 92.0]).deviation, 4)
        (91.0, 1.4142)
    """

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the mean of some values, at least one, and their deviation."""
        found = list(values)
        deviation = statistics.stdev(found) if len(found) > 1 else None
        return cls(statistics.fmean(found), deviation, len(found))


@dataclass(frozen=True)
class Group:
    """The cells that differ in their seed alone.

    Attributes:
        model: as the file names it.
        data: likewise.
        method: likewise, without options.
        variant: what else tells it from other groups of the sweep, as "per_step=2".
        seeds: of the cells that are done.
        open: the cells that are not, each with its state or why it failed.
        names: of the cells that are done.
        quality_name: of the task ("top-1").
        quality_unit: of all qualities.
        unit: of what is removed.
        total: how many could go; None where cells differ in it.
        figures: by name, over the seeds: `removed`; `val` and `test`, the quality of the result,
            and `dense_val` and `dense_test` of the dense network, in points; `speedup`, latency of
            dense over the result's, both merged; `latency_ms`; `macs` and `macs_ratio` (dense over
            this), `depth` and `params`, all merged; `relus`, rectifier evaluations of one sample;
            `seconds` of the search; `twin_val` and `twin_test`, the quality of the result's layers
            trained from scratch, where every cell has its twin. What is not known, and all of a
            group of which nothing is done, is missing.
        trusted: whether the machine was calm whenever latency was measured.
        published: the published result of this kind, with as many removed; None without one.
        published_twin: that of its layers trained from scratch, if they were here, too.
        certain: whether in every run the machine was calm and the speedup's 95 % interval leaves
            out 1.
    """

    model: str
    data: str
    method: str
    variant: str
    seeds: tuple[int, ...]
    open: Mapping[str, str]
    names: tuple[str, ...]
    quality_name: str
    quality_unit: str
    unit: str
    total: int | None
    figures: Mapping[str, Spread]
    trusted: bool
    published: Cell | None
    published_twin: Cell | None = None
    certain: bool = True

    @property
    def title(self) -> str:
        """The method, with what else tells it from other groups."""
        return ", ".join(filter(None, [self.method, self.variant]))

    @property
    def quality(self) -> Spread | None:
        """The quality that counts at the end: on test data or, without them, on validation."""
        return self.figures.get("test") or self.figures.get("val")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def groups_of(folder: SweepFolder) -> list[Group]:
    """Return the groups of a sweep's cells, those of one model and data together.

    Raises:
        RunError: the folder is not a sweep's, or is damaged.
    """
    cells = folder.read()
    parts: dict[str, list[CellState]] = {}
    for cell in cells:
        key = json.dumps({k: v for k, v in cell.job.items() if k != "seed"}, sort_keys=True)
        parts.setdefault(key, []).append(cell)
    varying = _varying(cells)
    made = [_group(part, folder, varying) for part in parts.values()]
    made = _told_apart([part[0] for part in parts.values()], made)
    kinds = list(dict.fromkeys((one.model, one.data) for one in made))
    return sorted(made, key=lambda one: kinds.index((one.model, one.data)))


def best(groups: Sequence[Group], figure: str) -> dict[tuple[str, str], float]:
    """Return the highest mean of a figure, or of "quality", for each model and data.

    A speedup that is not to be trusted is not among them.
    """
    highest: dict[tuple[str, str], float] = {}
    for one in groups:
        found = one.quality if figure == "quality" else one.figures.get(figure)
        if found is not None and (one.trusted or figure != "speedup"):
            kind = (one.model, one.data)
            highest[kind] = max(found.mean, highest.get(kind, found.mean))
    return highest


def _varying(cells: Sequence[CellState]) -> list[str]:
    """Return the options, besides those that have a column, in which cells differ."""
    names = dict.fromkeys(name for cell in cells for name in cell.given if name not in _OWN)
    return [n for n in names if len({json.dumps(_value(cell, n)) for cell in cells}) > 1]


def _told_apart(cells: Sequence[CellState], groups: Sequence[Group]) -> list[Group]:
    """Return the groups, each of a cell, those that read alike with the options that differ.

    A folder may hold cells of several calls, whose files said other things of all their cells.
    """
    alike: dict[tuple[str, ...], list[int]] = {}
    for place, one in enumerate(groups):
        alike.setdefault((one.model, one.data, one.title), []).append(place)
    made = list(groups)
    for places in alike.values():
        jobs = [cells[place].job for place in places]
        names = [
            name
            for name in dict.fromkeys(name for job in jobs for name in job if name != "seed")
            if len({json.dumps(job.get(name)) for job in jobs}) > 1
        ]
        for place, job in zip(places, jobs, strict=True):
            words = [f"{name}={plain_text(job.get(name))}" for name in names]
            variant = ", ".join(filter(None, [groups[place].variant, *words]))
            made[place] = replace(groups[place], variant=variant)
    return made


def _value(cell: CellState, name: str) -> Any:
    """Return an option's value; of what a job spells out otherwise, as the file has it."""
    written = name in ("recipe", "task") and name in cell.given
    return cell.given[name] if written else cell.job.get(name)


def _group(cells: Sequence[CellState], folder: SweepFolder, varying: Sequence[str]) -> Group:
    records = {c.name: folder.record(c.name) if c.state == "done" else None for c in cells}
    done = [(cell, record) for cell in cells if (record := records[cell.name]) is not None]
    first = cells[0]
    found = [record for _, record in done]
    usual = found[0].dense if found else None
    totals = {record.total for record in found}
    twins = _twins(found)
    figures = _figures(_FIGURES, found) | _figures(_OF_TWINS, twins)
    removed = figures.get("removed")
    told = {name: _value(first, name) for name in varying if name in first.given}
    behind = str(first.given.get("method", "")).partition("?")[2].replace("&", ", ")
    words = [f"{name}={plain_text(value)}" for name, value in told.items()]
    variant = ", ".join(filter(None, [behind, *words]))
    return Group(
        model=str(first.job["model"]),
        data=str(first.job["data"]),
        method=str(first.job["method"]),
        variant=variant,
        seeds=tuple(int(cell.job["seed"]) for cell, _ in done),
        open={c.name: c.failed or c.state for c in cells if records[c.name] is None},
        names=tuple(cell.name for cell, _ in done),
        quality_name="top-1" if usual is None else usual.quality_name,
        quality_unit="%" if usual is None else usual.quality_unit,
        unit=found[0].unit if found else "",
        total=totals.pop() if len(totals) == 1 else None,
        figures=figures,
        trusted=all(r.latency is None or r.latency.speedup.get("trusted", True) for r in found),
        published=_published(first, removed),
        published_twin=_published(first, removed, twin=True) if twins else None,
        certain=all(r.latency is None or told_apart(r.latency.speedup) for r in found),
    )


def _published(cell: CellState, removed: Spread | None, *, twin: bool = False) -> Cell | None:
    """Return what is published of a cell's kind, where all seeds removed as many."""
    if removed is None or removed.deviation:
        return None
    return published_of(cell.job, round(removed.mean), twin=twin)


def _twins(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the twins of all runs; none if one is missing or damaged: means would be of others."""
    found = []
    for record in records:
        with suppress(ShoalError):
            found += [twin for twin in [twin_of(record)] if twin is not None]
    return found if len(found) == len(records) else []


_Figures = Mapping[str, Callable[[RunRecord], float | None]]

_FIGURES: _Figures = {
    "removed": lambda run: run.removed,
    "val": lambda run: run.final.top1_val,
    "test": lambda run: run.final.top1_test,
    "dense_val": lambda run: run.dense.top1_val,
    "dense_test": lambda run: run.dense.top1_test,
    "speedup": lambda run: None if run.latency is None else run.latency.speedup["median"],
    "latency_ms": lambda run: None if run.latency is None else run.latency.result_merged_ms,
    "macs": lambda run: None if run.latency is None else run.latency.merged_macs,
    "macs_ratio": lambda run: (
        None if run.latency is None else run.dense.macs / max(1, run.latency.merged_macs)
    ),
    "depth": lambda run: None if run.latency is None else run.latency.merged_depth,
    "params": lambda run: None if run.latency is None else run.latency.merged_params,
    "relus": lambda run: run.final.relus,
    "seconds": lambda run: sum(step.seconds for step in run.steps),
}

_OF_TWINS: _Figures = {
    "twin_val": lambda twin: twin.dense.top1_val,
    "twin_test": lambda twin: twin.dense.top1_test,
}


def _figures(named: _Figures, records: Sequence[RunRecord]) -> dict[str, Spread]:
    """Return the figures that all records have."""
    every = {name: [read(run) for run in records] for name, read in named.items()}
    known = {n: [v for v in values if v is not None] for n, values in every.items()}
    return {
        name: Spread.of(values)
        for name, values in known.items()
        if values and len(values) == len(records)
    }
