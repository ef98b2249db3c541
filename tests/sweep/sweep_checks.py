"""What tests of sweeps share: a small spec, a finished run to copy, a pool without processes."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml

import small_runs
from shoal.sweep.pool import Ended
from shoal.sweep.work import Work

SPEC: Mapping[str, Any] = {
    "model": f"{Path(small_runs.__file__)}:build",
    "data": "digits",
    "method": ["easier", "layer_pruning"],
    "seed": [0, 1],
    "train_samples": 250,
    "val_samples": 150,
    "batch_size": 50,
    "dense_epochs": 1,
    "epochs": 0,
    "remove": 1,
    "max_drop": 100.0,
    "precision": "fp32",
}
"""Four cells that take a second or two each, but for measuring."""


def spec_file(folder: Path, **changes: Any) -> Path:
    """Write the small spec with changes as a YAML file, and return it."""
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({**SPEC, **changes}))
    return file


@functools.cache
def finished() -> Path:
    """Return the folder of a finished run, which is copied for each cell."""
    folder = Path(tempfile.mkdtemp()) / "run"
    small_runs.run(folder, remove=1, epochs=0)
    return folder


class Copies:
    """A pool whose cells are done by copying a finished run, as often as they are looked at.

    `fate` tells by the beginning of a cell's name what becomes of its tries, in order: "" is done,
    "died", or why it failed; the last one stands for all further tries.
    """

    where = "nowhere"

    def __init__(self, fate: Mapping[str, list[str]] | None = None, room: int = 2) -> None:
        self.fate = dict(fate or {})
        self.room = room
        self.works: list[Work] = []
        self._open: list[Work] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def free(self) -> bool:
        return len(self._open) < self.room

    def start(self, work: Work) -> None:
        assert self.free
        self.works.append(work)
        self._open.append(work)

    def ended(self) -> list[Ended]:
        now, self._open = self._open, []
        return [self._end(work) for work in now]

    def _end(self, work: Work) -> Ended:
        known = (fates for begin, fates in self.fate.items() if work.name.startswith(begin))
        fates = next(known, [""])
        fate = fates[min(work.number, len(fates)) - 1]
        if fate == "died":
            return Ended(work.name, died="its process was ended by SIGKILL")
        if not fate:
            shutil.copytree(finished(), work.folder)
        return Ended(work.name, failed=fate)
