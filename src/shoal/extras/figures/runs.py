"""Reading runs for a figure: which belong together, and what tells the others apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.errors import ConfigError
from shoal.sealed import read_sealed
from shoal.search.figures import TOP1
from shoal.search.records import RunRecord, Step
from shoal.search.run_files import read_config, read_run
from shoal.user_paths import user_path

_IDENTITY = "identity.json"
_FIRST = ("model", "data", "method", "rectifier", "how", "criterion", "per_step")
_NO_KIND = {
    "seed",
    "weights",
    "samples_in",
    "checkpoint",
}  # what repeats of one experiment differ in


@dataclass(frozen=True)
class Line:
    """The runs of one experiment, which differ in nothing but their seed.

    Attributes:
        label: what tells them from the others.
        runs: their records.
        about: their options, of the first run.
    """

    label: str
    runs: tuple[RunRecord, ...]
    about: Mapping[str, Any]

    def steps(self, run: RunRecord) -> list[Step]:
        """Return a run's steps by how much is removed, of equals the last."""
        last = {step.removed: step for step in run.steps}
        return [last[count] for count in sorted(last)]


def read_lines(folders: Sequence[str | Path]) -> list[Line]:
    """Return the experiments whose runs lie in some folders, in their order.

    A folder is a run's, or has runs below it, as a sweep's has.

    Raises:
        ConfigError: there is no run, or their qualities are of two kinds.
        RunError: a run's folder is damaged, or has no finished step.
    """
    found = [path for folder in folders for path in _runs_in(user_path(folder))]
    runs = [read_run(path) for path in dict.fromkeys(found)]
    if not runs:
        raise ConfigError("no run there has a finished step yet: wait, or start it again")
    kinds = {run.dense.quality_name for run in runs}
    if len(kinds) > 1:
        raise ConfigError(f"the runs measure {' and '.join(sorted(kinds))}: give those of one task")
    about = [_about(run.folder) for run in runs if run.folder is not None]
    names = telling(about)
    groups: dict[str, list[int]] = {}
    for index, options in enumerate(about):
        groups.setdefault(_label(options, names), []).append(index)
    return [
        Line(label, tuple(runs[i] for i in indices), about[indices[0]])
        for label, indices in groups.items()
    ]


def telling(about: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the options that tell experiments apart, as few as that needs, the plainest first."""
    others = sorted({name for options in about for name in options} - set(_FIRST) - _NO_KIND)
    chosen: list[str] = []
    apart = 1
    for name in (*_FIRST, *others):
        kinds = {tuple(repr(options.get(n)) for n in (*chosen, name)) for options in about}
        if len(kinds) > apart:
            chosen, apart = [*chosen, name], len(kinds)
    return chosen


def quality_part(lines: Iterable[Line]) -> str:
    """Return the part of the data that a figure shows: "test" where every run has it."""
    has_test = all(s.metrics.top1_test is not None for x in lines for r in x.runs for s in r.steps)
    return "test" if has_test else "validation"


def quality(step: Step, part: str) -> float:
    """Return a step's quality on a part of the data."""
    tested = step.metrics.top1_test
    return tested if part == "test" and tested is not None else step.metrics.top1_val


def quality_label(lines: Sequence[Line], part: str) -> str:
    """Return the title of an axis of qualities, with its unit."""
    dense = lines[0].runs[0].dense
    if dense.quality_name == TOP1:
        return f"{part} accuracy (top-1), %"
    unit = f", {dense.quality_unit}" if dense.quality_unit else ""
    return f"{part} {dense.quality_name}{unit}"


def _runs_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"there is no folder '{folder}': give the folder of a run")
    if (folder / _IDENTITY).exists() or (folder / "result.json").exists():
        return [folder]
    every = sorted(path.parent for path in folder.rglob(_IDENTITY))
    found = [path for path in every if not (path.parent / _IDENTITY).exists()]  # no twin of a run
    if not found:
        raise ConfigError(f"there is no run in '{folder}': give the folder of a run")
    return [path for path in found if _has_steps(path)]


def _has_steps(folder: Path) -> bool:
    """Whether a run has anything to draw yet."""
    return (folder / "result.json").exists() or any((folder / "steps").glob("[0-9]*"))


def _about(folder: Path) -> dict[str, Any]:
    """Return what a run was told, by its identity where it keeps one."""
    identity = folder / _IDENTITY
    decided = read_sealed(identity) if identity.exists() else {}
    told = read_config(folder)
    return {**decided, **{k: told[k] for k in ("model", "data", "method") if k in told}}


def _label(options: Mapping[str, Any], names: Sequence[str]) -> str:
    plain = {"model", "data", "method", "rectifier"}
    parts = [
        str(options[name]).removeprefix("shoal:") if name in plain else f"{name}={options[name]}"
        for name in names
        if options.get(name) is not None
    ]
    return ", ".join(parts) or str(options.get("method", "the run"))
