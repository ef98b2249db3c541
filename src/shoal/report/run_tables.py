"""A run in tables: dense against result, and step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from shoal.report.energy_tables import energy_lines, energy_table
from shoal.report.latency_tables import latency_table, quotient, runtime_name, runtime_notes
from shoal.report.record import RunRecord
from shoal.report.table import Cell, Column, Quantity, Row, Table
from shoal.report.wording import DONE
from shoal.runtimes import EAGER
from shoal.search.records import Step, lineage

__all__ = ["comparison_table", "headline", "outcome_lines", "outcome_tables", "steps_table"]


def headline(record: RunRecord) -> str:
    """Return the outcome of a run in one line."""
    before, after = (Quantity(m.top1_val, "%") for m in (record.dense, record.final))
    gain = ""
    if "speedup" in record.latency:
        gain = f"; latency, dense / result: {quotient(record.latency['speedup'])}"
    total = "" if record.total is None else f" of {record.total}"
    return f"{record.removed}{total} {record.unit} removed; validation {before} → {after}{gain}"


def comparison_table(record: RunRecord) -> Table:
    """Return the table of the dense network against the result."""
    ended = "speedup" in record.latency
    merged = "merged" if ended else "the change of latency is of both networks merged"
    notes = (
        "change: dense / result, so above 1 is less; of latency the median over rounds that timed "
        "both, with its 95 % interval",
        f"{merged}: dense with its batch norms folded, the result with every merge that is exact "
        "and pays here",
    )
    return Table(
        "result" if record.finished else "best so far",
        (Column("", align="left"), *map(Column, ("dense", "result", "change"))),
        (*_accuracy_rows(record), *_size_rows(record), *_latency_rows(record)),
        notes,
    )


def outcome_tables(record: RunRecord) -> list[Table]:
    """Return what a run came to: dense against result, with latencies and energy once measured."""
    latencies = latency_table(record.latency.get("runtimes", []))
    tables = [comparison_table(record), *([] if latencies is None else [latencies])]
    return [*tables, energy_table(record.energy)] if record.energy else tables


def _accuracy_rows(record: RunRecord) -> list[Row]:
    rows = []
    for name, key in (("top-1 validation", "top1_val"), ("top-1 test", "top1_test")):
        before, after = getattr(record.dense, key), getattr(record.final, key)
        known = before is not None and after is not None
        change = Quantity(after - before, "points") if known else None
        pair = [None if value is None else Quantity(value, "%") for value in (before, after)]
        rows.append(Row((name, *pair, change), last=key == "top1_test"))
    return rows


def _size_rows(record: RunRecord) -> list[Row]:
    dense, final, merged = record.dense, record.final, record.latency
    left = "removable blocks" if record.unit == "blocks" else record.unit
    rows = [
        Row((f"{left} left", *_left(record.total, record.removed), f"{record.removed} removed")),
        _sizes("depth, layers", "", dense.depth, final.depth),
        _sizes("work, MACs per sample", "count", dense.macs, final.macs),
        _sizes("parameters", "count", dense.params, final.params),
    ]
    for name, unit, key in (("depth", "", "depth"), ("work", "count", "macs"),
                            ("parameters", "count", "params")):  # fmt: skip
        if f"merged_{key}" in merged:
            before, after = getattr(dense, key), merged[f"merged_{key}"]
            rows.append(_sizes(f"{name}, merged", unit, before, after))
    return [*rows[:-1], replace(rows[-1], last=True)]


def _left(total: int | None, removed: int) -> tuple[Cell, Cell]:
    return ("?", "?") if total is None else (total, total - removed)


def _sizes(name: str, unit: str, before: int, after: int) -> Row:
    change: Cell = Quantity(before / after, "×") if after else None
    pair = (Quantity(before, unit), Quantity(after, unit))
    return Row((name, *pair, "same" if before == after else change))


def _latency_rows(record: RunRecord) -> list[Row]:
    """Return the rows of latency; each change is from rounds that timed both networks in turn."""
    batch = "" if record.latency_batch is None else f", batch {record.latency_batch}"
    found = record.latency
    if "speedup" in found:
        runtime = found.get("runtime", EAGER)
        where = "" if runtime == EAGER else f", {runtime_name(runtime)}"
        pair = (Quantity(found[key], "ms") for key in ("dense_folded_ms", "result_merged_ms"))
        return [Row((f"latency, merged{batch}{where}", *pair, quotient(found["speedup"])))]
    step = record.chosen
    change: Cell = "same"
    if step.step:
        interval = step.latency_ratio_low, step.latency_ratio_high
        change = Quantity(step.latency_ratio, "×", *interval)
    pair = (Quantity(m.latency_ms, "ms") for m in (record.dense, record.final))
    return [Row((f"latency, as trained{batch}", *pair, change))]


def outcome_lines(record: RunRecord) -> list[str]:
    """Return what is to be said under the table: what went, why it ended, what it means."""
    lines = [
        *(_removal_lines(record) or ["removed: nothing"]),
        f"ended because: {record.stopped}"
        if record.finished
        else "not finished: the command that began it goes on from here",
    ]
    lines += [f"note: {note}" for note in runtime_notes(record.latency.get("runtimes", []))]
    lines += energy_lines(record.energy)
    return [*lines, *(f"note: {note}" for note in record.notes)]


def _removal_lines(record: RunRecord) -> list[str]:
    """Return what was done to which sites, blocks or stretches, a line for each kind."""
    done: dict[str, list[str]] = {}
    for step in lineage(record.steps):
        if step.names:
            done.setdefault(step.operation, []).extend(step.names)
    return [f"{DONE.get(kind, kind)}: {', '.join(names)}" for kind, names in done.items()]


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
        "?: too close to tell",
    )
    return Table("steps", tuple(column for column, _ in columns), tuple(rows), notes)


_Columns = list[tuple[Column, Callable[[Step], Cell]]]


def _columns(record: RunRecord) -> _Columns:
    """Return the columns, each with what gives its cell of a step."""
    chosen = record.chosen.step
    columns: _Columns = [
        (Column("step"), lambda step: step.step),
        (Column("done", align="left"), _done),
        (Column("score", priority=7), _highest_score),
        (Column("untuned", "%", "right", "validation accuracy before fine-tuning", 5),
         lambda step: step.top1_val_before),
        (Column("validation", "%"), lambda step: step.metrics.top1_val),
        (Column("test", "%", priority=2), lambda step: step.metrics.top1_test),
    ]  # fmt: skip
    if len({step.sites_left for step in record.steps}) > 1:
        columns.append((Column("rectifiers", priority=6), lambda step: step.sites_left))
    for column, key in (
        (Column("depth", priority=1), "depth"),
        (Column("MACs", "count", priority=3), "macs"),
        (Column("parameters", "count", priority=8), "params"),
    ):
        if _varies(record.steps, key):
            columns.append((column, _metric(key)))
    return [
        *columns,
        (Column("latency", "ms", "right", "as trained", 4), lambda step: step.metrics.latency_ms),
        (Column("dense / this"), _latency_ratio),
        (Column("took", "s", priority=9), lambda step: step.seconds),
        (Column("", align="left"), lambda step: _mark(step, chosen)),
    ]


def _done(step: Step) -> str:
    if not step.names:
        return f"({step.operation})"
    return f"{DONE.get(step.operation, step.operation)} {', '.join(step.names)}"


def _latency_ratio(step: Step) -> Quantity:
    sure = not step.step or step.latency_ratio_low > 1.0 or step.latency_ratio_high < 1.0
    return Quantity(step.latency_ratio, "×", sure=sure)


def _highest_score(step: Step) -> Cell:
    titles = [(name, f"{step.operation} {name}") for name in step.names]  # of "shoal": moves
    found = [step.scores[title] for both in titles for title in both if title in step.scores]
    return Quantity(max(found), "score", sure=step.settled is not False) if found else None


def _varies(steps: Sequence[Step], name: str) -> bool:
    return len({getattr(step.metrics, name) for step in steps}) > 1


def _metric(name: str) -> Callable[[Step], Cell]:
    return lambda step: getattr(step.metrics, name)


def _mark(step: Step, chosen: int) -> str:
    if step.step == chosen:
        return "result"
    if step.within:
        return ""
    return "not better" if step.operation == "fine-tune" else "too low"
