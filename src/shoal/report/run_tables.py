"""A run in tables for the terminal: dense against result, and step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.markup import escape
from rich.table import Table

from shoal.methods import Metrics, Step
from shoal.report.record import RunRecord
from shoal.report.wording import amount, duration, milliseconds, percent, points, ratio

__all__ = ["comparison_table", "outcome_lines", "steps_table"]


def comparison_table(record: RunRecord) -> Table:
    """Return the table of the dense network against the result.

    The change in latency is the quotient measured in the same rounds, not that of the two medians
    beside it, which were taken at different times.
    """
    table = _table(title="result" if record.finished else "best so far")
    table.add_column("", no_wrap=True)
    for head in ("dense", "result", "change"):
        table.add_column(head, justify="right", no_wrap=True)
    dense, final = record.dense, record.final
    for name, get in (("top-1 validation", "top1_val"), ("top-1 test", "top1_test")):
        before, after = getattr(dense, get), getattr(final, get)
        known = before is not None and after is not None
        table.add_row(
            name, percent(before), percent(after), points(after - before) if known else "–"
        )
    left = "?" if record.total is None else str(record.total - record.removed)
    total = "?" if record.total is None else str(record.total)
    table.add_row(f"{_what(record)} left", total, left, f"{record.removed} removed")
    table.add_row(
        "depth, layers", str(dense.depth), str(final.depth), _times(dense, final, "depth")
    )
    table.add_row(
        "work, MACs per sample", amount(dense.macs), amount(final.macs),
        _times(dense, final, "macs"),
    )  # fmt: skip
    table.add_row(
        "parameters", amount(dense.params), amount(final.params), _times(dense, final, "params")
    )
    batch = "" if record.latency_batch is None else f", batch {record.latency_batch}"
    table.add_row(
        f"latency, median{batch}",
        milliseconds(dense.latency_ms),
        milliseconds(final.latency_ms),
        _latency_change(record.chosen),
    )
    return table


def _latency_change(step: Step) -> str:
    low, high = step.latency_ratio_low, step.latency_ratio_high
    if low <= 1.0 <= high:
        return f"not certain, {low:.2f} to {high:.2f} ×" if step.step else "same"
    return f"{ratio(step.latency_ratio)} ({low:.2f} to {high:.2f})"


def _what(record: RunRecord) -> str:
    blocks = any(step.operation in ("drop", "collapse") for step in record.steps)
    return "blocks" if blocks else "rectifiers"


def _times(dense: Metrics, final: Metrics, name: str) -> str:
    before, after = getattr(dense, name), getattr(final, name)
    if before == after:
        return "same"
    return ratio(before / after) if after else "–"


def outcome_lines(record: RunRecord) -> list[str]:
    """Return what is to be said under the table: what went, why it ended, what it means."""
    lines = [
        f"removed: {', '.join(record.removals) or 'nothing'}",
        f"ended because: {record.stopped}"
        if record.finished
        else "not finished: the command that began it goes on from here",
        "change: dense / result, so above 1 is less; latency measured in the same rounds, with its "
        "95 % interval",
    ]
    operations = {step.operation for step in record.steps[1:]}
    if operations == {"linearize"}:
        lines.append(
            "a linearized rectifier alone saves no time: the layers around it can be merged, and "
            "are not merged yet"
        )
    return [*lines, *(f"note: {note}" for note in record.notes)]


def steps_table(record: RunRecord) -> Table:
    """Return the table of all steps; what never changes has no column."""
    table = _table(title=f"steps of {escape(str(record.folder))}")
    columns = _columns(record)
    for head, _ in columns:
        table.add_column(head, justify="left" if head in ("removed", "") else "right")
    table.caption, table.caption_justify = "?: not certain, too close to tell", "left"
    chosen = record.chosen.step
    for step in record.steps:
        style = "bold" if step.step == chosen else ("dim" if not step.within else "")
        table.add_row(*(escape(text(step)) for _, text in columns), style=style)
    return table


def _columns(record: RunRecord) -> list[tuple[str, Callable[[Step], str]]]:
    columns: list[tuple[str, Callable[[Step], str]]] = [
        ("step", lambda step: str(step.step)),
        ("removed", lambda step: ", ".join(step.names) if step.names else "(dense)"),
        ("score", _lowest_score),
        ("before tuning", lambda step: percent(step.top1_val_before)),
        ("validation", lambda step: percent(step.metrics.top1_val)),
        ("test", lambda step: percent(step.metrics.top1_test)),
    ]
    for head, name in (("depth", "depth"), ("MACs", "macs"), ("parameters", "params")):
        if _varies(record.steps, name):
            columns.append((head, _amount_of(name)))
    chosen = record.chosen.step
    return [
        *columns,
        ("latency", lambda step: milliseconds(step.metrics.latency_ms)),
        ("dense / this", _latency_ratio),
        ("took", lambda step: duration(step.seconds)),
        ("", lambda step: _mark(step, chosen)),
    ]


def _latency_ratio(step: Step) -> str:
    sure = "" if step.latency_ratio_low > 1.0 or step.latency_ratio_high < 1.0 else " ?"
    return f"{ratio(step.latency_ratio)}{sure if step.step else ''}"


def _lowest_score(step: Step) -> str:
    found = [step.scores[name] for name in step.names if name in step.scores]
    sure = "" if step.settled is not False else " ?"
    return f"{max(found):.4f}{sure}" if found else "–"


def _varies(steps: Sequence[Step], name: str) -> bool:
    return len({getattr(step.metrics, name) for step in steps}) > 1


def _amount_of(name: str) -> Callable[[Step], str]:
    return lambda step: amount(getattr(step.metrics, name))


def _mark(step: Step, chosen: int) -> str:
    if step.step == chosen:
        return "result"
    return "" if step.within else "too low"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="dim")
