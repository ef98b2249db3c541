"""Where the cells of a sweep run: here, on Ray or on Slurm; and how many at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.errors import ConfigError, OptionError
from shoal.sweep.on_ray import EMBEDDED, OnRay
from shoal.sweep.on_slurm import OnSlurm
from shoal.sweep.pool import Pool, Processes


class Place:
    """Where cells run, with what each of them gets.

    Args:
        jobs: how many run at a time; None for what is usual there.
        threads: of each on the CPU; None likewise.
        ray: "local", or the address of a cluster; None for no Ray.
        slurm: submitit's parameters; None for no Slurm.
        gpus: the share of a GPU on Ray; None for one where there is one.

    Raises:
        ConfigError: these do not go together.
    """

    def __init__(
        self,
        jobs: int | None,
        threads: int | None,
        ray: str | None,
        slurm: Mapping[str, Any] | None,
        gpus: float | None,
    ) -> None:
        if ray is not None and slurm is not None:
            raise ConfigError("both ray and slurm are given: cells run on one of them")
        if gpus is not None and ray is None:
            raise ConfigError("gpus_per_cell is given without ray: omit it")
        if gpus is not None and (isinstance(gpus, bool) or not gpus >= 0):
            raise OptionError("gpus_per_cell", gpus, "a number, 0 or more")
        self.ray, self.slurm, self.gpus = ray, slurm, gpus
        self.jobs = jobs
        self.threads = threads
        if ray == EMBEDDED:
            self.jobs = jobs or max(1, cores() // (threads or 1))
            self.threads = threads or max(1, cores() // self.jobs)
        elif ray is not None:
            self.threads = threads or 1
        elif slurm is None:
            self.jobs = jobs or 1
            shared = self.jobs > 1 and "OMP_NUM_THREADS" not in os.environ
            self.threads = threads or (max(1, cores() // self.jobs) if shared else None)

    def open(self, folder: Path) -> Pool:
        """Return what runs the cells of a sweep's folder."""
        if self.ray is not None:
            return OnRay(self.ray, self.jobs, self.threads or 1, self.gpus)
        if self.slurm is not None:
            return OnSlurm(folder / "slurm", self.slurm, self.jobs, self.threads)
        return Processes(self.jobs or 1)


def cores() -> int:
    """Return how many CPUs this process may use."""
    known = getattr(os, "sched_getaffinity", None)
    return len(known(0)) if known else os.cpu_count() or 1
