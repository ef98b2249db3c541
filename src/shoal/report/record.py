"""Read a run's folder for reports, finished or not; nothing in it is changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from shoal.errors import RunError
from shoal.search.records import FORMAT, Metrics, Step, chosen

__all__ = ["RunRecord", "read_run"]


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder tells.

    Attributes:
        folder: the run's.
        dense: figures of the dense network.
        final: figures of the result; of a run that is not finished, of the best so far.
        steps: all finished steps, the dense network (0) first.
        removed: how many rectifiers, or blocks, are gone in the result.
        total: how many there were that could have gone; None where an unfinished run does not tell.
        unit: of these two, "rectifiers" or "blocks".
        stopped: why the search ended; empty while it has not.
        notes: what the user should know.
        latency: what the end of the search measured of dense and result, as they are and merged,
            as `Result.latency` has it; empty while it has not ended.
        latency_batch: the batch size at which latency was measured; None if not known.
        energy: what training and inference take, as `Result.energy` has it; empty where it was
            not asked for, or the search has not ended.
        merge: what was merged in the result, as `MergeReport.to_dict` has it; empty while the
            search has not ended.
    """

    folder: Path
    dense: Metrics
    final: Metrics
    steps: tuple[Step, ...]
    removed: int
    total: int | None
    unit: str
    stopped: str
    notes: tuple[str, ...]
    latency: Mapping[str, Any]
    latency_batch: int | None
    energy: Mapping[str, Any] = field(default_factory=dict)
    merge: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the search has come to its end."""
        return bool(self.stopped)

    @property
    def chosen(self) -> Step:
        """The step whose network is the result."""
        return chosen(self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Return what `result.json` holds, also for a run that is not finished."""
        values = {
            "format": FORMAT,
            "dense": self.dense.to_dict(),
            "final": self.final.to_dict(),
            "steps": [step.to_dict() for step in self.steps],
            "removed": self.removed,
            "total": self.total,
            "unit": self.unit,
            "stopped": self.stopped,
            "latency": dict(self.latency),
            "notes": list(self.notes),
        }
        more = {"energy": self.energy, "merge": self.merge}
        return values | {name: dict(found) for name, found in more.items() if found}


def read_run(folder: str | Path) -> RunRecord:
    """Read the record of a run.

    Raises:
        RunError: the folder is not a run's, has no finished step yet, or is damaged.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise RunError(f"there is no folder '{path}': give the --out folder of a run")
    if not (path / "identity.json").exists() and not (path / "result.json").exists():
        raise RunError(f"'{path}' is not a run's folder: give the --out folder of a run")
    batch = _latency_batch(path)
    if (path / "result.json").exists():
        return _finished(path, _read(path / "result.json"), batch)
    return _unfinished(path, batch)


def _finished(path: Path, result: Mapping[str, Any], batch: int | None) -> RunRecord:
    try:
        return RunRecord(
            folder=path,
            dense=Metrics.from_dict(result["dense"]),
            final=Metrics.from_dict(result["final"]),
            steps=tuple(Step.from_dict(step) for step in result["steps"]),
            removed=result["removed"],
            total=result["total"],
            unit=result["unit"],
            stopped=result["stopped"],
            notes=tuple(result["notes"]),
            latency=dict(result["latency"]),
            latency_batch=batch,
            energy=dict(result.get("energy", {})),
            merge=dict(result.get("merge", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"'{path / 'result.json'}' is damaged ({error}): give the run's command again to "
            "write it anew"
        ) from error


def _unfinished(path: Path, batch: int | None) -> RunRecord:
    files = sorted((path / "steps").glob("[0-9]*/step.json"))
    if not files:
        raise RunError(f"the run in '{path}' has no finished step yet: wait, or start it again")
    steps = tuple(Step.from_dict(_read(file)) for file in files)
    dense, last = steps[0], chosen(steps)
    return RunRecord(
        folder=path,
        dense=dense.metrics,
        final=last.metrics,
        steps=steps,
        removed=last.removed,
        total=last.total,
        unit=last.unit,
        stopped="",
        notes=(),
        latency={},
        latency_batch=batch,
    )


def _latency_batch(path: Path) -> int | None:
    """Return the batch size of the latencies; the file is the user's to edit, so anything goes."""
    try:
        values = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    found = values.get("latency_batch") if isinstance(values, dict) else None
    return found if isinstance(found, int) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"'{path}' cannot be read, it is damaged: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"'{path}' is damaged: it holds no record")
    return value
