"""All methods of a sweep: quality against latency and work, as SVG in the page's colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.report.chart import COLOURS, drawn_svg
from shoal.report.table import unit_of
from shoal.search.figures import TOP1
from shoal.sweep.groups import Group, Spread

_BY_NAME = {name: colour for colour, name in COLOURS.items()}
_CYCLE = [_BY_NAME[name] for name in ("strong", "second", "ink")]
_MARKERS = "os^DvPX*"  # as many as have no divisor in common with the colours
_AGAINST = {"speedup": "latency", "macs_ratio": "MACs"}


def group_chart(groups: Sequence[Group]) -> str:
    """Return the chart of groups of one model and data; nothing without matplotlib, or any figure.

    A point is a group's mean over its seeds, its bars their deviation; the line joins those that no
    other one equals or beats in both. A latency that is not to be trusted is hollow, and not on it.
    """
    shown = [one for one in groups if one.quality is not None]
    if not any(name in one.figures for name in _AGAINST for one in shown):
        return ""
    label = f"quality against {' and '.join(_AGAINST.values())}"
    return drawn_svg((7.6, 3.8), lambda figure: _draw(figure, shown), label)


def _draw(figure: Any, groups: Sequence[Group]) -> None:
    for axes, (figure_name, words) in zip(
        figure.subplots(1, 2, sharey=True), _AGAINST.items(), strict=True
    ):
        axes.set_facecolor("none")
        points = {place: _point(axes, one, place, figure_name) for place, one in enumerate(groups)}
        best = _front(
            [
                point
                for place, point in points.items()
                if point is not None and (groups[place].trusted or figure_name != "speedup")
            ]
        )
        axes.plot(*zip(*best, strict=True), color=_BY_NAME["faint"], lw=1.1, zorder=1)
        axes.set_xlabel(f"{words}, as a share of dense's")
        axes.invert_xaxis()
        axes.margins(0.1)
        axes.grid(alpha=0.6, lw=0.6)
    first = groups[0]
    unit = ", %" if unit_of(first.quality_unit) == "%" else ""
    name = "accuracy" if first.quality_name == TOP1 else first.quality_name
    figure.axes[0].set_ylabel(f"{name}{unit}")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5, frameon=False)


def _point(axes: Any, one: Group, place: int, figure: str) -> tuple[float, float] | None:
    """Draw a group, and return where; None if the figure is not known."""
    ratio, quality = one.figures.get(figure), one.quality
    if ratio is None or quality is None:
        return None
    x, y = 1.0 / ratio.mean, quality.mean
    colour = _CYCLE[place % len(_CYCLE)]
    axes.errorbar(
        x, y, xerr=_deviation(ratio) * x * x, yerr=_deviation(quality), color=colour, ms=6,
        fmt=_MARKERS[place % len(_MARKERS)], elinewidth=0.9, label=one.title,
        mfc=colour if one.trusted or figure != "speedup" else "none", zorder=2,
    )  # fmt: skip
    return x, y


def _deviation(found: Spread) -> float:
    return found.deviation or 0.0


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other one equals or beats in both, the cheapest first."""
    best: list[tuple[float, float]] = []
    for cost, quality in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not best or quality > best[-1][1]:
            best.append((cost, quality))
    return best
