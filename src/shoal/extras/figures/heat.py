"""A criterion's scores of all places, step by step."""

from __future__ import annotations

import math
from pathlib import Path

from shoal.errors import ConfigError, ShoalError
from shoal.extras.figures.canvas import check_path, empty_figure, write
from shoal.importance import criterion_for
from shoal.search.records import RunRecord
from shoal.search.run_files import read_config, read_run


def score_map(folder: str | Path, path: str | Path) -> Path:
    """Draw what a run's criterion gave each rectifier or block before each removal, as a heat map.

    Of EASIER, the entropy of each site over the steps. Removed places are white, the one that goes
    next is framed. Returns the path, of a .png, .svg or .pdf.

    Raises:
        ConfigError: no step of the run has scores, or the ending is another one.
        RunError: the folder is not a run's, or is damaged.
        FileError: the file cannot be written.
        ShoalError: matplotlib is not installed.
    """
    target = check_path(path)
    record = read_run(folder)
    steps = [step for step in record.steps if any(map(math.isfinite, step.scores.values()))]
    places = list(dict.fromkeys(name for step in steps for name in step.scores))
    if not steps:
        raise ConfigError(
            f"no step of '{folder}' has scores: give a run of easier or layer_pruning"
        )
    rows = {name: row for row, name in enumerate(places)}
    values = [[step.scores.get(name, math.nan) for step in steps] for name in places]
    shown = [[v if math.isfinite(v) else math.nan for v in row] for row in values]
    figure = empty_figure(width=3.0 + 0.42 * len(steps), height=1.4 + 0.24 * len(places))
    axes = figure.subplots()
    # One hue whose lightness alone tells the value: it reads the same in grey.
    image = axes.imshow(shown, aspect="auto", cmap="cividis", interpolation="nearest")
    for column, step in enumerate(steps):
        for name in step.names:
            if name in rows:
                axes.plot(column, rows[name], "s", ms=7, mfc="none", mec="white", mew=3.2)
                axes.plot(column, rows[name], "s", ms=7, mfc="none", mec="black", mew=1.4)
    axes.set_xticks(range(len(steps)), [str(step.step) for step in steps], fontsize=8)
    axes.set_yticks(range(len(places)), places, fontsize=8)
    axes.set_xlabel("step; the square marks what goes in it, white what is gone")
    axes.set_ylabel("first to last in the forward pass")
    figure.colorbar(image, ax=axes, label=_title(record), pad=0.02)
    return write(figure, target)


def _title(record: RunRecord) -> str:
    """Return the criterion of a run with its unit."""
    told = {} if record.folder is None else read_config(record.folder)
    name = str(told.get("criterion") or "score")
    if ":" in name:  # code that a folder names is never run
        return name
    try:
        unit = criterion_for(name, "site" if record.unit == "rectifiers" else "block").unit
    except ShoalError:
        unit = ""
    return f"{name}, {unit}" if unit else name
