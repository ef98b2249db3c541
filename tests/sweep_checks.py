"""What tests of sweeps share: a small spec, a finished run to copy, a pool without processes."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

import small_runs
from scripts import script
from shoal.sweep import CellState, SweepFolder, SweepListener
from shoal.sweep.pool import Ended
from shoal.sweep.work import Work

outcomes = script("benchmarks/sweep.py").outcomes

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


class Killer(SweepListener):
    """Kills the process of the first cell that has measured its dense network, once."""

    def __init__(self, out: Path) -> None:
        self.folder = SweepFolder(out)
        self.killed = ""

    def now(self, cells: Sequence[CellState]) -> None:
        for cell in cells:
            if not self.killed and cell.state == "running" and cell.glance is not None:
                os.kill(process_of(self.folder.log(cell.name)), signal.SIGKILL)
                self.killed = cell.name


def process_of(log: Path) -> int:
    """Return the process that the last try in a log speaks of."""
    return int(re.findall(r"^try \d+: process (\d+)", log.read_text(), re.MULTILINE)[-1])
