"""Accuracy on corrupted images in a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING

from rich.table import Table

from shoal.report.wording import percent, points

if TYPE_CHECKING:
    from shoal.extras.robustness import Robustness

__all__ = ["robustness_lines", "robustness_table"]


def robustness_table(found: Mapping[str, Robustness]) -> Table:
    """Return the accuracies by corruption, each the mean over severities.

    Args:
        found: by the name of the network, measured alike; of two, the first is the one that the
            other's change is told against.
    """
    every = list(found.values())
    table = Table(
        title="accuracy on corrupted images, mean over severities",
        title_justify="left",
        title_style="bold",
        header_style="dim",
    )
    table.add_column("corruption", no_wrap=True)
    for name in found:
        table.add_column(name, justify="right", no_wrap=True)
    if len(every) == 2:
        table.add_column("change", justify="right", no_wrap=True)
    table.add_row("none", *_cells([one.clean for one in every]), end_section=True)
    names = list(every[0].by_corruption)
    for name in names:
        values = [fmean(one.by_corruption[name]) for one in every]
        table.add_row(name, *_cells(values), end_section=name == names[-1])
    table.add_row("mean of all", *_cells([one.mean for one in every]), style="bold")
    return table


def _cells(values: list[float]) -> list[str]:
    cells = [percent(value) for value in values]
    return [*cells, points(values[1] - values[0])] if len(values) == 2 else cells


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
