"""Quality against latency, step by step, as SVG in the colours of the page around it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from shoal.report.table import quality_unit
from shoal.search.figures import TOP1
from shoal.search.front import front
from shoal.search.records import RunRecord

# matplotlib wants colours; in the SVG the page's own stand in their place.
_INK, _FAINT, _GRID, _STRONG, _TEST = "#010101", "#020202", "#030303", "#040404", "#050505"
COLOURS = {_INK: "ink", _FAINT: "faint", _GRID: "line", _STRONG: "strong", _TEST: "second"}
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a name may have two dollar signs, and is no formula
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "grid.color": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def curve(record: RunRecord, allowed: float | None = None) -> str:
    """Return the chart of a run's steps as SVG; nothing without matplotlib.

    `allowed` is the drop of quality, in points, that the search was given; a line shows it.
    """
    return drawn_svg((7.6, 3.8), lambda figure: _draw(figure.subplots(), record, allowed),
                     "quality against latency")  # fmt: skip


def drawn_svg(inches: tuple[float, float], draw: Callable[[Any], None], label: str) -> str:
    """Return what is drawn into a figure as SVG in the page's colours; nothing without matplotlib.

    The colours are those of `COLOURS`; `label` is what the picture is to whoever cannot see it.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        return ""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=inches, layout="constrained", facecolor="none")
        draw(figure)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    for colour, name in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _draw(axes: Any, record: RunRecord, allowed: float | None) -> None:
    steps, dense, chosen = record.steps, record.dense, record.chosen
    axes.set_facecolor("none")
    on_front = {step.step for step in front(steps)}
    for step in steps:
        x = 1.0 / step.latency_ratio
        low, high = 1.0 / step.latency_ratio_high, 1.0 / step.latency_ratio_low
        faint = step.step not in on_front
        colour = _FAINT if faint else _STRONG
        axes.errorbar(
            x, step.metrics.top1_val, xerr=[[max(0.0, x - low)], [max(0.0, high - x)]],
            fmt="o", ms=4 if faint else 6, color=colour, ecolor=colour, elinewidth=1,
            mfc="none" if faint or step.latency_doubt else colour, zorder=2 if faint else 3,
        )  # fmt: skip
        if not faint:
            axes.annotate(str(step.step), (x, step.metrics.top1_val), xytext=(5, 5),
                          textcoords="offset points", color=_INK)  # fmt: skip
    trusted = (s for s in steps if s.step in on_front and not s.latency_doubt)
    best = sorted(trusted, key=lambda s: s.latency_ratio)
    axes.plot([1.0 / s.latency_ratio for s in best], [s.metrics.top1_val for s in best],
              color=_STRONG, lw=1.2, label="validation, the best steps", zorder=1)  # fmt: skip
    tested = [s for s in best if s.metrics.top1_test is not None]
    if tested:
        axes.plot([1.0 / s.latency_ratio for s in tested], [s.metrics.top1_test for s in tested],
                  color=_TEST, lw=1.2, ls="--", label="test, the same", zorder=1)  # fmt: skip
    if allowed is not None:
        least = dense.top1_val - allowed
        axes.axhline(least, color=_FAINT, ls=":", lw=1.2)
        axes.annotate("allowed on validation", (1.0, least), xycoords=("axes fraction", "data"),
                      ha="right", va="bottom", color=_FAINT)  # fmt: skip
    axes.plot(1.0 / chosen.latency_ratio, chosen.metrics.top1_val, "o", ms=11, mfc="none",
              mec=_INK, label="the result")  # fmt: skip
    unit = "%" if quality_unit(dense) == "%" else ""
    name = "accuracy" if dense.quality_name == TOP1 else dense.quality_name
    axes.set_xlabel("latency, as a share of dense's (both merged)")
    axes.set_ylabel(f"{name}, {unit}" if unit else name)
    axes.invert_xaxis()
    axes.margins(0.08)
    axes.grid(alpha=0.6, lw=0.6)
    axes.legend(fontsize=8.5, frameon=False, loc="best")
