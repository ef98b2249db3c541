"""Many runs: cells from one YAML file, run here, on Ray or on Slurm, and compared.

The module is the function `sweep` as well, so that `shoal.sweep(…)` runs one:

    >>> import shoal, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shoal.sweep({"model": "shoal:digits_resnet", "data": "digits", "seed": []}, out=folder)
    Traceback (most recent call last):
    shoal.errors.ConfigError: seed is an empty list: give it a value, or several
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from shoal.sweep.cells import Cell, cells_of
from shoal.sweep.folder import CellState, Glance, SweepFolder, is_sweep
from shoal.sweep.groups import Group, groups_of
from shoal.sweep.run import Sweep, SweepListener, sweep

__all__ = [
    "Cell",
    "CellState",
    "Glance",
    "Group",
    "Sweep",
    "SweepFolder",
    "SweepListener",
    "cells_of",
    "groups_of",
    "is_sweep",
    "sweep",
]


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Sweep:
        return sweep(*args, **options)


# Importing the package binds it to `shoal.sweep`, which is to be called.
sys.modules[__name__].__class__ = _Callable
