"""Accuracy on corrupted images in a table."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING

from shoal.report.table import Cell, Column, Quantity, Row, Table

if TYPE_CHECKING:
    from shoal.extras.robustness import Robustness

__all__ = ["robustness_lines", "robustness_table"]


def robustness_table(found: Mapping[str, Robustness]) -> Table:
    """Return the accuracies by corruption, each the mean over severities.

    Args:
        found: by the name of the network, measured alike; of two, the first is the one that the
            other's change is given against.
    """
    every = list(found.values())
    heads = [*found, *(["change"] if len(every) == 2 else [])]
    names = list(every[0].by_corruption)
    means = {name: [fmean(one.by_corruption[name]) for one in every] for name in names}
    rows = [
        Row(("none", *_cells([one.clean for one in every])), last=True),
        *(Row((name, *_cells(means[name])), last=name == names[-1]) for name in names),
        Row(("mean of all", *_cells([one.mean for one in every])), "strong"),
    ]
    columns = (Column("corruption", align="left"), *(Column(head, "%") for head in heads))
    return Table("accuracy on corrupted images, mean over severities", columns, tuple(rows))


def _cells(values: list[float]) -> tuple[Cell, ...]:
    change = [Quantity(values[1] - values[0], "points")] if len(values) == 2 else []
    return (*values, *change)


def robustness_lines(found: Mapping[str, Robustness], *, part: str, image_size: int) -> list[str]:
    """Return what is to be said under the table: how it was measured and what it compares with.

    Args:
        found: what the table shows.
        part: which part of the data it was, "test" or "validation".
        image_size: height and width of the images, in pixels.
    """
    one = next(iter(found.values()))
    levels = ", ".join(map(str, one.severities))
    lines = [f"{one.samples} {part} images, severities {levels}, seed {one.seed}"]
    stronger = (
        ""
        if image_size >= 200
        else (
            f": on these of {image_size} pixels they are stronger than in the files of CIFAR-10-C"
        )
    )
    lines.append(
        f"strengths of ImageNet-C{stronger}; compare networks with each other, not with papers"
    )
    return lines
