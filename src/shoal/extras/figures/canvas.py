"""What all figures share: an empty one, colours that everyone can tell apart, and the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoal.errors import ConfigError, missing_extra
from shoal.files import readable_errors
from shoal.user_paths import user_path

_FORMATS = (".png", ".svg", ".pdf")

# Okabe and Ito's colours, which all kinds of colour vision tell apart; printed in grey, markers and
# dashes do. One pair of styles comes back only after 56 lines.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", "-.", ":")


def style(index: int) -> dict[str, Any]:
    """Return colour, marker and dashes of a figure's line."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _DASHES[index % len(_DASHES)],
    }


def hatch(index: int) -> str:
    """Return the hatching of a figure's bars, which tells them apart in grey."""
    return ("", "///", "...", "xxx", "\\\\\\", "++")[index % 6]


def check_path(path: str | Path) -> Path:
    """Return the path of a figure; raises `ConfigError` unless its ending is one we can write."""
    target = user_path(path)
    if target.suffix.lower() not in _FORMATS:
        raise ConfigError(f"'{target}' must end in {', '.join(_FORMATS)}: give another name")
    return target


def empty_figure(width: float, height: float) -> Any:
    """Return a figure of so many inches; `ShoalError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "report", "drawing figures") from None
    # Not through pyplot: that picks a window system, and keeps every figure.
    return Figure(figsize=(min(max(width, 7.0), 24.0), min(height, 60.0)), layout="constrained")


def write(figure: Any, target: Path) -> Path:
    """Write a figure; raises `FileError` if that cannot be."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a name may have two dollar signs, and is no formula
    with readable_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=150)
    return target
