"""Energy, CO2 and training time of a run in a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from shoal.report.record import RunRecord
from shoal.report.wording import duration, ratio

__all__ = ["energy_lines", "energy_table"]


def energy_table(record: RunRecord) -> Table:
    """Return what an epoch of training and 1,000 inferences take, dense against result."""
    found = record.energy
    kind = " (an estimate)" if found.get("estimated") else ""
    table = Table(
        title=f"energy{kind}", title_justify="left", title_style="bold", header_style="dim"
    )
    table.add_column("", no_wrap=True)
    for head in ("dense", "result", "change"):
        table.add_column(head, justify="right", no_wrap=True)
    inference = found["inference"]
    if found["epoch"]:
        _add(table, "an epoch of training", found["epoch"])
    if "dense" in inference:
        title = f"{inference['samples']:,} inferences, batch {inference['batch']}"
        _add(table, title, inference)
    return table


def _add(table: Table, title: str, pair: Mapping[str, Any]) -> None:
    dense, result = pair["dense"], pair["result"]
    for name, key, text in (
        (title, "seconds", duration),
        ("  energy", "wh", watt_hours),
        ("  CO2", "co2_g", grams),
    ):
        before, after = dense[key], result[key]
        table.add_row(
            name,
            text(before),
            text(after),
            ratio(before / after) if after else "–",
            end_section=key == "co2_g",
        )


def energy_lines(record: RunRecord) -> list[str]:
    """Return what is to be said of a run's energy; nothing where it was not asked for."""
    found = record.energy
    if not found:
        return []
    lines = []
    spent = found["training"]
    if spent:
        parts = f"{spent['steps']} of {spent['of_steps']} trainings"
        lines.append(
            f"training of this run took {watt_hours(spent['wh'])} and {grams(spent['co2_g'])} of "
            f"CO2 in {duration(spent['seconds'])} ({parts}; without scoring and measuring)"
        )
    saved = found["training_time_saved_percent"]
    if saved is not None:
        less = f"{abs(saved):.0f} % {'less' if saved >= 0 else 'more'}"
        lines.append(f"training time: an epoch of the result takes {less} than one of dense")
    else:
        lines.append("training time: not known, for the training is not shoal's or failed")
    lines.append(f"energy: {found['source']}; of the whole machine, with all that ran meanwhile")
    return lines


def watt_hours(value: float) -> str:
    """Return an energy with three digits."""
    return f"{value:.3g} Wh"


def grams(value: float) -> str:
    """Return a mass with three digits."""
    return f"{value:.3g} g"
