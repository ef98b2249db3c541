"""Whether a sweep on two Ray workers, one of them killed, gives what one after the other does.

Twelve cells on digits, first one after the other in processes here, then on Ray with two workers of
one thread each, of which one is killed with SIGKILL when half of the cells are done. The results
must be the same and the time at most 0.65 of the first:

    python benchmarks/sweep.py --out DIR
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import shoal
from shoal.report.sweep_progress import SweepLines
from shoal.sweep import CellState, Sweep, SweepFolder

SPEC = {
    "model": "shoal:digits_resnet",
    "data": "digits",
    "method": ["easier", "layer_pruning", "egp", "random"],
    "seed": [0, 1, 2],
    "dense_epochs": 10,
    "epochs": 2,
    "remove": 3,
    "max_drop": 100.0,
    "batch_size": 64,
    "lr": 0.05,
    "precision": "fp32",
    "device": "cpu",
}
MOST = 0.65  # of the time that one after the other takes


class Killer(SweepLines):
    """Kills the process of a running cell once half of the cells are done."""

    def __init__(self, out: Path) -> None:
        super().__init__(Console(stderr=True, highlight=False))
        self.folder = SweepFolder(out)
        self.killed = ""

    def now(self, cells: Sequence[CellState]) -> None:
        """Look whether it is time."""
        super().now(cells)
        done = sum(cell.state == "done" for cell in cells)
        for cell in cells:
            if not self.killed and 2 * done >= len(cells) and cell.glance and cell.seconds:
                text = self.folder.log(cell.name).read_text(encoding="utf-8")
                os.kill(int(re.findall(r"process (\d+) on", text)[-1]), signal.SIGKILL)
                self.killed = cell.name


def outcomes(found: Sweep) -> dict[str, Any]:
    """Return what each cell removed and how good it is: all that does not hang on the clock."""
    folder = SweepFolder(found.folder)
    runs = {cell.name: folder.record(cell.name) for cell in found.cells}
    return {
        name: run and [(s.names, s.metrics.top1_val, s.metrics.top1_test) for s in run.steps]
        for name, run in runs.items()
    }


def main(words: Sequence[str] | None = None) -> int:
    """Run both, and say how they compare; 0 if all is as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("sweep-benchmark"))
    out = parser.parse_args(words).out
    if out.exists():
        parser.error(f"'{out}' exists: give a new folder, so that all is run")
    lines = SweepLines(Console(stderr=True, highlight=False))
    begun = time.monotonic()
    serial = shoal.sweep(SPEC, out / "serial", jobs=1, threads=1, listener=lines)
    between = time.monotonic()
    killer = Killer(out / "ray")
    on_ray = shoal.sweep(SPEC, out / "ray", jobs=2, threads=1, ray="local", listener=killer)
    ended = time.monotonic()
    share = (ended - between) / (between - begun)
    same = outcomes(serial) == outcomes(on_ray) and not serial.failed and not on_ray.failed
    found = {
        "cells": len(serial.cells),
        "killed": killer.killed,
        "tries": {cell.name: cell.tries for cell in on_ray.cells if cell.tries > 1},
        "same_results": same,
        "serial_seconds": round(between - begun, 1),
        "ray_seconds": round(ended - between, 1),
        "share": round(share, 3),
        "most": MOST,
    }
    print(json.dumps(found, indent=2))
    return 0 if same and killer.killed and share <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
