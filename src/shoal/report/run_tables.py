"""A run in tables: dense against result, and step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from shoal.report.about import machine_words
from shoal.report.extra_tables import energy_lines, energy_table
from shoal.report.int8_tables import int8_lines, int8_tables
from shoal.report.latency_tables import (
    doubt_notes,
    quotient,
    runtime_name,
    runtime_notes,
    runtimes_table,
)
from shoal.report.table import (
    DONE,
    Cell,
    Column,
    Quantity,
    Row,
    Table,
    quality_title,
    quality_unit,
    ratio_row,
    text_columns,
)
from shoal.report.twin_table import twin_table
from shoal.runtimes import EAGER
from shoal.search.figures import TOP1
from shoal.search.records import RunRecord, Step, lineage


def headline(record: RunRecord) -> str:
    """Return the outcome of a run in one line."""
    unit = quality_unit(record.dense)
    before, after = (Quantity(m.top1_val, unit) for m in (record.dense, record.final))
    quality = quality_title("validation", record.dense.quality_name)
    gain = ""
    if record.latency is not None:
        gain = f"; latency, dense / result: {quotient(record.latency.speedup)}"
    total = "" if record.total is None else f" of {record.total}"
    return f"{record.removed}{total} {record.unit} removed; {quality} {before} → {after}{gain}"


def comparison_table(record: RunRecord) -> Table:
    """Return the table of the dense network against the result."""
    unmerged = "the change of latency is of both networks merged"
    notes = (
        "change: dense / result, so above 1 is less; of latency the median over rounds that timed "
        "both, with its 95 % interval",
        f"{unmerged if record.latency is None else 'merged'}: dense with its batch norms folded, "
        "the result with every merge that is exact and pays here",
        *([] if record.budget == 1.0 else [budget_note(record.budget)]),
        *doubt_notes([_change(record)]),
    )
    return Table(
        "result" if record.finished else "best so far",
        (*text_columns(""), *map(Column, ("dense", "result", "change"))),
        (*_accuracy_rows(record), *_size_rows(record), _latency_row(record)),
        notes,
    )


def budget_note(budget: float) -> str:
    """Return in words that trainings were shorter, or longer, than asked for."""
    return f"budget {budget:g}: each training had this share of the epochs that its options say"


def outcome_tables(record: RunRecord, twin: RunRecord | None = None) -> list[Table]:
    """Return what a run came to, beside its twin if there is one, with what else was measured."""
    latencies = None if record.latency is None else runtimes_table(record.latency)
    beside = [latencies, twin_table(record, twin)]
    tables = [comparison_table(record), *(table for table in beside if table is not None)]
    tables += int8_tables(record)
    return [*tables, energy_table(record.energy)] if record.energy else tables


def _measured(record: RunRecord) -> Sequence[Mapping[str, Any]]:
    return () if record.latency is None else record.latency.measured


def _accuracy_rows(record: RunRecord) -> list[Row]:
    rows = []
    quality, unit = record.dense.quality_name, quality_unit(record.dense)
    for part, key in (("validation", "top1_val"), ("test", "top1_test")):
        before, after = getattr(record.dense, key), getattr(record.final, key)
        known = before is not None and after is not None
        change = Quantity(after - before, "points") if known else None
        pair = [None if value is None else Quantity(value, unit) for value in (before, after)]
        rows.append(Row((f"{quality} {part}", *pair, change), last=key == "top1_test"))
    return rows


def _size_rows(record: RunRecord) -> list[Row]:
    dense, final, end = record.dense, record.final, record.latency
    left = "removable blocks" if record.unit == "blocks" else record.unit
    total, removed = record.total, record.removed
    counts: tuple[Cell, Cell] = ("?", "?") if total is None else (total, total - removed)
    sizes = [
        ("depth, layers", "", dense.depth, final.depth),
        ("work, MACs per sample", "count", dense.macs, final.macs),
        ("parameters", "count", dense.params, final.params),
    ]
    if dense.relus is not None and final.relus is not None:
        sizes.append(("rectifier evaluations per sample", "count", dense.relus, final.relus))
    if end is not None:
        sizes += [
            ("depth, merged", "", dense.depth, end.merged_depth),
            ("work, merged", "count", dense.macs, end.merged_macs),
            (
                "parameters, merged",
                "count",
                end.dense_folded_params or dense.params,
                end.merged_params,
            ),
        ]
    return [
        Row((f"{left} left", *counts, f"{removed} removed")),
        *(ratio_row(*size, last=size is sizes[-1]) for size in sizes),
    ]


def _latency_row(record: RunRecord) -> Row:
    """Return the row of latency, whose change is from rounds that timed both networks in turn."""
    end, step = record.latency, record.chosen
    sizes = (record.latency_batch or ()) if end is None else (end.batch,)
    batch = f", batch {sizes[0]}" if sizes else ""
    if end is not None:
        name = "" if end.runtime == EAGER else f", {runtime_name(end.runtime)}"
        pair = (Quantity(ms, "ms") for ms in (end.dense_folded_ms, end.result_merged_ms))
        return Row((f"latency, merged{batch}{name}", *pair, quotient(end.speedup)))
    change: Cell = quotient(_change(record)) if step.step else "same"
    pair = (Quantity(m.latency_ms, "ms") for m in (record.dense, record.final))
    return Row((f"latency, as trained{batch}", *pair, change))


def _change(record: RunRecord) -> Mapping[str, Any]:
    """Return the ratio of latencies, dense over result, as `Ratio.to_dict` has it."""
    if record.latency is not None:
        return record.latency.speedup
    step = record.chosen
    return {
        "median": step.latency_ratio, "low": step.latency_ratio_low,
        "high": step.latency_ratio_high, "trusted": not step.latency_doubt,
        "doubt": step.latency_doubt,
    }  # fmt: skip


def outcome_lines(record: RunRecord) -> list[str]:
    """Return what is to be said under the table: what went, why it ended, what it means."""
    done: dict[str, list[str]] = {}  # sites, blocks or stretches, by what was done to them
    for step in lineage(record.steps):
        if step.names:
            done.setdefault(step.operation, []).extend(step.names)
    return [
        *([f"{DONE.get(kind, kind)}: {', '.join(names)}" for kind, names in done.items()]
          or ["removed: nothing"]),
        f"ended because: {record.stopped}"
        if record.finished
        else "not finished: the command that began it goes on from here",
        *(f"note: {note}" for note in runtime_notes(_measured(record))),
        *([f"measured on {machine_words(record.machine)}"] if record.machine else []),
        *energy_lines(record.energy),
        *int8_lines(record),
        *(f"note: {note}" for note in record.notes),
    ]  # fmt: skip


def steps_table(record: RunRecord) -> Table:
    """Return the table of all steps; what never changes has no column."""
    chosen = record.chosen.step
    columns = _columns(record)
    rows = (
        Row(
            tuple(cell(step) for _, cell in columns),
            "strong" if step.step == chosen else ("" if step.within else "faint"),
        )
        for step in record.steps
    )
    notes = (
        "dense / this: latency of dense with its batch norms folded over this one's, merged; "
        "?: too close to tell, or not to be trusted, since the machine was busy",
    )
    return Table("steps", tuple(column for column, _ in columns), tuple(rows), notes)


def _columns(record: RunRecord) -> list[tuple[Column, Callable[[Step], Cell]]]:
    """Return the columns, each with what gives its cell of a step."""

    def mark(step: Step) -> str:
        return "result" if step.step == record.chosen.step else step.shortfall

    quality, unit = record.dense.quality_name, quality_unit(record.dense)
    what = "accuracy" if quality == TOP1 else quality
    changing = [
        (column, attrgetter(name))
        for column, name in (
            (Column("rectifiers", priority=6), "sites_left"),
            (Column("depth", priority=1), "metrics.depth"),
            (Column("MACs", "count", priority=3), "metrics.macs"),
            (Column("parameters", "count", priority=8), "metrics.params"),
            (
                Column("evaluations", "count", "right", "of rectifiers, per sample", 6),
                "metrics.relus",
            ),
        )
        if len(set(map(attrgetter(name), record.steps))) > 1
    ]
    return [
        (Column("step"), attrgetter("step")),
        (Column("done", align="left"), _done),
        (Column("score", priority=7), _highest_score),
        (Column("untuned", unit, "right", f"validation {what} before fine-tuning", 5),
         attrgetter("top1_val_before")),
        (Column(quality_title("validation", quality), unit), attrgetter("metrics.top1_val")),
        (Column(quality_title("test", quality), unit, priority=2), attrgetter("metrics.top1_test")),
        *changing,
        (Column("latency", "ms", "right", "as trained", 4), attrgetter("metrics.latency_ms")),
        (Column("dense / this"), _latency_ratio),
        (Column("took", "s", priority=9), attrgetter("seconds")),
        (Column("", align="left"), mark),
    ]  # fmt: skip


def _done(step: Step) -> str:
    if step.ended:
        return f"fine-tuned step {step.begun_from} for the last time"
    if not step.names:
        return f"({step.operation})"
    return f"{DONE.get(step.operation, step.operation)} {', '.join(step.names)}"


def _latency_ratio(step: Step) -> Quantity:
    return Quantity(step.latency_ratio, "×", sure=not step.step or step.faster is not None)


def _highest_score(step: Step) -> Cell:
    titles = [*step.names, *(f"{step.operation} {name}" for name in step.names)]  # "shoal": moves
    found = [step.scores[title] for title in titles if title in step.scores]
    return Quantity(max(found), "score", sure=step.settled is not False) if found else None
