"""Quality against what was removed, against latency and against work."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import shoal.methods  # noqa: F401  registers them, whose defaults old runs have
from shoal.errors import ConfigError
from shoal.extras.figures.canvas import check_path, empty_figure, style, write
from shoal.extras.figures.runs import Line, quality, quality_label, quality_part, read_lines
from shoal.search.published import published_of
from shoal.search.records import Step

AGAINST = ("latency", "macs")


def removed(folders: Sequence[str | Path], path: str | Path, *, printed: bool = True) -> Path:
    """Draw quality against the number of removed rectifiers or blocks, a line an experiment.

    Figure 3 of Quétu et al. 2024. Runs that differ in nothing but the seed are one line: their mean
    where all of them are, with a band of one standard deviation. Returns the path.

    Args:
        folders: of runs, or with runs below them, as a sweep's.
        path: where to write; .png, .svg or .pdf.
        printed: whether what the papers print for the same networks and data is drawn beside it.

    Raises:
        ConfigError: there is no run, or the ending is another one.
        RunError: a run's folder is damaged.
        FileError: the file cannot be written.
        ShoalError: matplotlib is not installed.
    """
    target = check_path(path)
    lines = read_lines(folders)
    part = quality_part(lines)
    figure = empty_figure(7.6, 4.6)
    axes = figure.subplots()
    for index, line in enumerate(lines):
        look = style(index)
        counts, means, deviations = _means(line, part)
        axes.plot(counts, means, label=line.label, ms=5, lw=1.6, zorder=3, **look)
        if any(deviations):
            low = [m - d for m, d in zip(means, deviations, strict=True)]
            high = [m + d for m, d in zip(means, deviations, strict=True)]
            axes.fill_between(counts, low, high, color=look["color"], alpha=0.18, lw=0, zorder=1)
        for step in (step for run in line.runs for step in line.steps(run)):
            axes.plot(
                step.removed, quality(step, part), look["marker"], color=look["color"], ms=3,
                alpha=0.45, zorder=2,
            )  # fmt: skip
        if printed and (cells := _printed(line)):
            axes.plot(
                list(cells), list(cells.values()), label=f"{line.label}, published", ms=4, lw=0.9,
                mfc="white", zorder=2, **look,
            )  # fmt: skip
    units = {run.unit for line in lines for run in line.runs if run.unit}
    counted = units.pop() if len(units) == 1 else "rectifiers, or blocks, as the method counts:"
    axes.set_xlabel(f"{counted} removed")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _finish(axes, lines, part)
    return write(figure, target)


def front(folders: Sequence[str | Path], path: str | Path, *, against: str = "latency") -> Path:
    """Draw quality against measured latency, or against work, of every step of every run.

    A line joins what nothing of the same experiment beats in both. Latency is a share of dense's,
    measured in the same rounds, both merged, with its 95 % interval; hollow where it is not to be
    trusted. Work is that of the network before it was merged.

    Args:
        folders: of runs, or with runs below them, as a sweep's.
        path: where to write; .png, .svg or .pdf.
        against: "latency" or "macs".

    Raises:
        ConfigError: there is no run, or the ending or `against` is another one.
        RunError: a run's folder is damaged.
        FileError: the file cannot be written.
        ShoalError: matplotlib is not installed.
    """
    target = check_path(path)
    if against not in AGAINST:
        raise ConfigError(f"against is '{against}': give {' or '.join(AGAINST)}")
    lines = read_lines(folders)
    part = quality_part(lines)
    figure = empty_figure(7.6, 4.6)
    axes = figure.subplots()
    everything = [step for line in lines for run in line.runs for step in run.steps]
    low, high = _range(everything, against)
    hidden = 0
    for index, line in enumerate(lines):
        look = style(index)
        steps = [step for run in line.runs for step in run.steps]
        for step in steps:
            if low <= _cost(step, against) <= high:
                _point(axes, step, part, against, look)
            else:
                hidden += 1
        best = _best([s for s in steps if _is_sure(s, against)], part, against)
        axes.plot(
            [_cost(step, against) for step in best], [quality(step, part) for step in best],
            label=line.label, ms=6, lw=1.6, zorder=3, **look,
        )  # fmt: skip
    title = "latency, % of the dense network's (both merged; less is faster)"
    if not all(_is_sure(step, against) for step in everything):
        title += "\nhollow: not to be trusted" + (f"; {hidden} more lie outside" if hidden else "")
    if against == "macs":
        title = "work per sample, millions of multiply-accumulates"
    axes.set_xlabel(title)
    _finish(axes, lines, part)
    return write(figure, target)


def _means(line: Line, part: str) -> tuple[list[int], list[float], list[float]]:
    """Return what was removed in all runs, and mean and deviation of their qualities."""
    found: dict[int, list[float]] = {}
    for run in line.runs:
        for step in line.steps(run):
            found.setdefault(step.removed, []).append(quality(step, part))
    # Where some runs have ended, the others are not what all would have come to.
    counts = sorted(n for n, values in found.items() if len(values) == len(line.runs))
    deviations = [statistics.stdev(found[n]) if len(found[n]) > 1 else 0.0 for n in counts]
    return counts, [statistics.fmean(found[n]) for n in counts], deviations


def _printed(line: Line) -> dict[int, float]:
    """Return the published accuracies of an experiment, by what was removed."""
    total = max((run.total or 0 for run in line.runs), default=0)
    cells = {count: published_of(line.about, count) for count in range(total + 1)}
    known = {
        count: cell.accuracy
        for count, cell in cells.items()
        if cell is not None and cell.accuracy is not None and cell.counted
    }
    return known if any(known) else {}  # the dense network alone is no line


def _cost(step: Step, against: str) -> float:
    return step.metrics.macs / 1e6 if against == "macs" else 100.0 / step.latency_ratio


def _is_sure(step: Step, against: str) -> bool:
    return against == "macs" or not step.latency_doubt


def _range(steps: Sequence[Step], against: str) -> tuple[float, float]:
    """Return the costs to show: a busy machine's must not squeeze all others into a corner."""
    sure = [_cost(step, against) for step in steps if _is_sure(step, against)]
    return min(sure, default=0.0) / 1.25, max(sure, default=math.inf) * 1.25


def _best(steps: Sequence[Step], part: str, against: str) -> list[Step]:
    """Return the steps that no other is both as cheap and better than, the cheapest first."""
    best: list[Step] = []
    for step in sorted(steps, key=lambda s: (_cost(s, against), -quality(s, part))):
        if not best or quality(step, part) > quality(best[-1], part):
            best.append(step)
    return best


def _point(axes: Any, step: Step, part: str, against: str, look: dict[str, Any]) -> None:
    x, y = _cost(step, against), quality(step, part)
    colour = look["color"]
    filled = colour if _is_sure(step, against) else "none"
    if against == "latency" and filled == colour:
        low, high = 100.0 / step.latency_ratio_high, 100.0 / step.latency_ratio_low
        axes.plot([low, high], [y, y], color=colour, lw=0.8, alpha=0.4, zorder=1)
    axes.plot(x, y, look["marker"], color=colour, mfc=filled, ms=4, alpha=0.45, zorder=2)


def _finish(axes: Any, lines: Sequence[Line], part: str) -> None:
    axes.set_ylabel(quality_label(lines, part))
    axes.grid(alpha=0.35, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.04)
    axes.legend(fontsize=8.5, frameon=False, loc="best")
