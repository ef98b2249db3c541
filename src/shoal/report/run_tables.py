"""A run in tables for the terminal: dense against result, and step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.markup import escape
from rich.table import Table

from shoal.report.energy_tables import energy_lines
from shoal.report.latency_tables import runtime_name, runtime_notes
from shoal.report.record import RunRecord
from shoal.report.wording import DONE, amount, duration, milliseconds, percent, points, ratio
from shoal.runtimes import EAGER
from shoal.search.records import Step, lineage

__all__ = ["comparison_table", "outcome_lines", "steps_table"]


def comparison_table(record: RunRecord) -> Table:
    """Return the table of the dense network against the result."""
    table = _table(title="result" if record.finished else "best so far")
    table.add_column("", no_wrap=True)
    for head in ("dense", "result", "change"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in (*_accuracy_rows(record), *_size_rows(record), *_latency_rows(record)):
        table.add_row(*row)
    return table


_Row = tuple[str, str, str, str]


def _accuracy_rows(record: RunRecord) -> list[_Row]:
    rows: list[_Row] = []
    for name, get in (("top-1 validation", "top1_val"), ("top-1 test", "top1_test")):
        before, after = getattr(record.dense, get), getattr(record.final, get)
        known = before is not None and after is not None
        change = points(after - before) if known else "–"
        rows.append((name, percent(before), percent(after), change))
    return rows


def _size_rows(record: RunRecord) -> list[_Row]:
    dense, final = record.dense, record.final
    rows: list[_Row] = [
        _removal_row(record),
        ("depth, layers", str(dense.depth), str(final.depth), _times(dense.depth, final.depth)),
        _amounts("work, MACs per sample", dense.macs, final.macs),
        _amounts("parameters", dense.params, final.params),
    ]
    if "merged_depth" in record.latency:
        depth, macs = record.latency["merged_depth"], record.latency["merged_macs"]
        rows.append(("depth, merged", str(dense.depth), str(depth), _times(dense.depth, depth)))
        rows.append(_amounts("work, merged", dense.macs, macs))
    if "merged_params" in record.latency:
        params = record.latency["merged_params"]
        rows.append(_amounts("parameters, merged", dense.params, params))
    return rows


def _removal_row(record: RunRecord) -> _Row:
    total = record.total
    return (
        f"{'removable ' if record.unit == 'blocks' else ''}{record.unit} left",
        "?" if total is None else str(total),
        "?" if total is None else str(total - record.removed),
        f"{record.removed} removed",
    )


def _amounts(name: str, before: int, after: int) -> _Row:
    return name, amount(before), amount(after), _times(before, after)


def _times(before: float, after: float) -> str:
    if before == after:
        return "same"
    return ratio(before / after) if after else "–"


def _latency_rows(record: RunRecord) -> list[_Row]:
    """Return the rows of latency; each change is from rounds that timed both networks in turn."""
    batch = "" if record.latency_batch is None else f", batch {record.latency_batch}"
    found = record.latency
    if "speedup" in found:
        gain = found["speedup"]
        runtime = found.get("runtime", EAGER)
        where = "" if runtime == EAGER else f", {runtime_name(runtime)}"
        return [
            (
                f"latency, merged{batch}{where}",
                milliseconds(found["dense_folded_ms"]),
                milliseconds(found["result_merged_ms"]),
                _quotient(gain["median"], gain["low"], gain["high"]),
            )
        ]
    step = record.chosen
    folded = _quotient(step.latency_ratio, step.latency_ratio_low, step.latency_ratio_high)
    return [
        (
            f"latency, as trained{batch}",
            milliseconds(record.dense.latency_ms),
            milliseconds(record.final.latency_ms),
            f"{folded}, merged" if step.step else "same",
        )
    ]


def _quotient(median: float, low: float, high: float) -> str:
    """Return a ratio with its interval; one that may be 1 is not claimed."""
    if low <= 1.0 <= high:
        return f"not certain, {low:.2f} to {high:.2f} ×"
    return f"{ratio(median)} ({low:.2f} to {high:.2f})"


def outcome_lines(record: RunRecord) -> list[str]:
    """Return what is to be said under the table: what went, why it ended, what it means."""
    lines = [
        *(_removal_lines(record) or ["removed: nothing"]),
        f"ended because: {record.stopped}"
        if record.finished
        else "not finished: the command that began it goes on from here",
        "change: dense / result, so above 1 is less; of latency the median over rounds that timed "
        "both, with its 95 % interval (the quotient of two medians may differ a little)",
    ]
    if "speedup" in record.latency:
        lines.append(
            "merged: dense with its batch norms folded, the result with every merge that is exact "
            "and that paid here (shoal.merge_)"
        )
        lines += [f"note: {note}" for note in runtime_notes(record.latency.get("runtimes", []))]
    lines += energy_lines(record)
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
    table = _table(title=f"steps of {escape(str(record.folder))}")
    columns = _columns(record)
    for head, _ in columns:
        table.add_column(head, justify="left" if head in ("done", "") else "right")
    table.caption_justify = "left"
    table.caption = (
        "?: not certain, too close to tell; latency: as trained; dense / this: of latency, dense "
        "with its batch norms folded and this one merged"
    )
    chosen = record.chosen.step
    for step in record.steps:
        style = "bold" if step.step == chosen else ("dim" if not step.within else "")
        table.add_row(*(escape(text(step)) for _, text in columns), style=style)
    return table


def _columns(record: RunRecord) -> list[tuple[str, Callable[[Step], str]]]:
    columns: list[tuple[str, Callable[[Step], str]]] = [
        ("step", lambda step: str(step.step)),
        ("done", _done),
        ("score", _lowest_score),
        ("before tuning", lambda step: percent(step.top1_val_before)),
        ("validation", lambda step: percent(step.metrics.top1_val)),
        ("test", lambda step: percent(step.metrics.top1_test)),
    ]
    if len({step.sites_left for step in record.steps}) > 1:
        columns.append(("rectifiers", lambda step: str(step.sites_left)))
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


def _done(step: Step) -> str:
    if not step.names:
        return f"({step.operation})"
    return f"{DONE.get(step.operation, step.operation)} {', '.join(step.names)}"


def _latency_ratio(step: Step) -> str:
    sure = "" if step.latency_ratio_low > 1.0 or step.latency_ratio_high < 1.0 else " ?"
    return f"{ratio(step.latency_ratio)}{sure if step.step else ''}"


def _lowest_score(step: Step) -> str:
    titles = [(name, f"{step.operation} {name}") for name in step.names]  # of "shoal": moves
    found = [step.scores[title] for both in titles for title in both if title in step.scores]
    sure = "" if step.settled is not False else " ?"
    return f"{max(found):.4f}{sure}" if found else "–"


def _varies(steps: Sequence[Step], name: str) -> bool:
    return len({getattr(step.metrics, name) for step in steps}) > 1


def _amount_of(name: str) -> Callable[[Step], str]:
    return lambda step: amount(getattr(step.metrics, name))


def _mark(step: Step, chosen: int) -> str:
    if step.step == chosen:
        return "result"
    if step.within:
        return ""
    return "not better" if step.operation == "fine-tune" else "too low"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="dim")
