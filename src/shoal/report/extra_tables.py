"""What the extras measure, in tables: energy of a run, and quality on corrupted images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from shoal.report.table import Cell, Column, Quantity, Row, Table, ratio_row, text_columns, unit_of

if TYPE_CHECKING:
    from shoal.extras.robustness import Robustness


def energy_table(found: Mapping[str, Any]) -> Table:
    """Return what an epoch of training and 1,000 inferences take, by a run's meter."""
    inference = found["inference"]
    rows = _energy_rows("an epoch of training", found["epoch"]) if found["epoch"] else []
    if "dense" in inference:
        title = f"{inference['samples']:,} inferences, batch {inference['batch']}"
        rows += _energy_rows(title, inference)
    return Table(
        f"energy{' (an estimate)' if found.get('estimated') else ''}",
        (*text_columns(""), *map(Column, ("dense", "result", "dense / result"))),
        tuple(rows),
    )


def _energy_rows(title: str, pair: Mapping[str, Any]) -> list[Row]:
    units = ((title, "seconds", "s"), ("  energy", "wh", "Wh"), ("  CO2", "co2_g", "g"))
    return [
        ratio_row(name, unit, pair["dense"][key], pair["result"][key], last=key == "co2_g")
        for name, key, unit in units
    ]


def energy_lines(found: Mapping[str, Any]) -> list[str]:
    """Return what is to be said of a run's energy; nothing without a meter."""
    if not found:
        return []
    lines = []
    spent, saved = found["training"], found["training_time_saved_percent"]
    if spent:
        lines.append(
            f"training of this run took {Quantity(spent['wh'], 'Wh')} and "
            f"{Quantity(spent['co2_g'], 'g')} of CO2 in {Quantity(spent['seconds'], 's')} "
            f"({spent['steps']} of {spent['of_steps']} trainings; without scoring and measuring)"
        )
    if saved is None:
        lines.append("training time: unknown, as the training is not shoal's or failed")
    else:
        less = f"{abs(saved):.0f} % {'less' if saved >= 0 else 'more'}"
        lines.append(f"training time: an epoch of the result takes {less} than one of dense")
    return [*lines, f"energy: {found['source']}; of the whole machine, with all that ran on it"]


def robustness_table(found: Mapping[str, Robustness]) -> Table:
    """Return the qualities of networks by corruption, each the mean over severities.

    Of two networks, the change from the first to the other is given too.
    """
    every = list(found.values())
    names = list(every[0].by_corruption)
    heads = [*found, *(["change"] if len(every) == 2 else [])]
    means = {name: [fmean(one.by_corruption[name]) for one in every] for name in names}
    rows = (
        Row(("none", *_with_change([one.clean for one in every])), last=True),
        *(Row((name, *_with_change(means[name])), last=name == names[-1]) for name in names),
        Row(("mean of all", *_with_change([one.mean for one in every])), "strong"),
    )
    unit = unit_of(every[0].quality_unit)
    columns = (*text_columns("corruption"), *(Column(head, unit) for head in heads))
    title = f"{every[0].quality_name} on corrupted images, mean over severities"
    return Table(title, columns, rows)


def _with_change(values: Sequence[float]) -> list[Cell]:
    change = [Quantity(values[1] - values[0], "points")] if len(values) == 2 else []
    return [*values, *change]


def robustness_lines(found: Mapping[str, Robustness], *, part: str, image_size: int) -> list[str]:
    """Return what is to be said under the table: how it was measured and what it compares with.

    `part` of the data is "test" or "validation"; `image_size` is in pixels.
    """
    one = next(iter(found.values()))
    stronger = ""
    if image_size < 200:
        stronger = (
            f": on these of {image_size} pixels they are stronger than in the files of CIFAR-10-C"
        )
    return [
        f"{one.samples} {part} images, severities {', '.join(map(str, one.severities))}, "
        f"seed {one.seed}",
        f"strengths of ImageNet-C{stronger}; compare networks with each other, not with papers",
    ]
