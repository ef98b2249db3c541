"""Energy, CO2 and training time of a run in a table, from the JSON values of its meter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.report.table import Column, Quantity, Row, Table

__all__ = ["energy_lines", "energy_table"]


def energy_table(found: Mapping[str, Any]) -> Table:
    """Return what an epoch of training and 1,000 inferences take, dense against result."""
    inference = found["inference"]
    rows = _rows("an epoch of training", found["epoch"]) if found["epoch"] else []
    if "dense" in inference:
        title = f"{inference['samples']:,} inferences, batch {inference['batch']}"
        rows += _rows(title, inference)
    heads = ("dense", "result", "dense / result")
    return Table(
        f"energy{' (an estimate)' if found.get('estimated') else ''}",
        (Column("", align="left"), *map(Column, heads)),
        tuple(rows),
    )


def _rows(title: str, pair: Mapping[str, Any]) -> list[Row]:
    rows = []
    for name, key, unit in ((title, "seconds", "s"), ("  energy", "wh", "Wh"),
                            ("  CO2", "co2_g", "g")):  # fmt: skip
        before, after = pair["dense"][key], pair["result"][key]
        ratio = Quantity(before / after, "×") if after else None
        cells = (name, Quantity(before, unit), Quantity(after, unit), ratio)
        rows.append(Row(cells, last=key == "co2_g"))
    return rows


def energy_lines(found: Mapping[str, Any]) -> list[str]:
    """Return what is to be said of a run's energy; nothing without a meter."""
    if not found:
        return []
    lines = []
    spent = found["training"]
    if spent:
        parts = f"{spent['steps']} of {spent['of_steps']} trainings"
        lines.append(
            f"training of this run took {Quantity(spent['wh'], 'Wh')} and "
            f"{Quantity(spent['co2_g'], 'g')} of CO2 in {Quantity(spent['seconds'], 's')} "
            f"({parts}; without scoring and measuring)"
        )
    saved = found["training_time_saved_percent"]
    if saved is not None:
        less = f"{abs(saved):.0f} % {'less' if saved >= 0 else 'more'}"
        lines.append(f"training time: an epoch of the result takes {less} than one of dense")
    else:
        lines.append("training time: unknown, as the training is not shoal's or failed")
    lines.append(f"energy: {found['source']}; of the whole machine, with all that ran on it")
    return lines
