"""Operations and numbers as people read them, each number with its unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

__all__ = ["DONE", "UNITS", "amount", "duration", "percent", "points"]

DONE = {"linearize": "linearized", "drop": "dropped", "collapse": "collapsed"}


def amount(number: float) -> str:
    """Return a count with four digits and a prefix: 1820000000 is "1.82 G"."""
    for factor, prefix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= factor:
            return f"{number / factor:.4g} {prefix}"
    return str(int(number))


def percent(value: float | None) -> str:
    """Return an accuracy in percent, or a dash."""
    return "–" if value is None else f"{value:.2f} %"


def points(value: float) -> str:
    """Return a difference of accuracies in percentage points, with its sign."""
    value = 0.0 if abs(value) < 0.005 else value  # no "-0.00"
    return f"{value:+.2f} points"


def duration(seconds: float) -> str:
    """Return a time as "8.5 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


UNITS: Mapping[str, Callable[[float], str]] = MappingProxyType(
    {
        "": str,
        "count": amount,
        "%": percent,
        "points": points,
        "s": duration,
        "ms": "{:.3g} ms".format,
        "×": "{:.2f} ×".format,
        "score": "{:#.4g}".format,
        "error": "{:.2g}".format,
        "Wh": "{:.3g} Wh".format,
        "g": "{:.3g} g".format,
    }
)
"""How a number is written, by its unit; "count" is for MACs and parameters, as in 68.86 M."""
