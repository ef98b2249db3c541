"""What a command is to do: a YAML file's options with flags over them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.errors import ConfigError
from shoal.sealed import read_options

if TYPE_CHECKING:
    from shoal.search.job import Job
    from shoal.tasks import Task


def read_job(path: str | Path | None, flags: Mapping[str, Any]) -> Job:
    """Return the job of a YAML file, if there is one, with the flags that are not None over it."""
    import shoal.methods  # noqa: F401  registers them
    from shoal.search.job import job_of

    return job_of(read_options(path) if path is not None else {}, flags)


def run_task(run: Mapping[str, Any], asked: str | None = None) -> Task:
    """Return the task that was asked for, or else a run's; a folder's own code is never run."""
    from shoal.search.settings import task_of_run

    return task_of_run(run, asked)


def run_options(folder: Path) -> dict[str, Any]:
    """Return the flat options of a run; nothing where it has none, or its file was edited."""
    try:
        return read_options(folder / "config.yaml")
    except ConfigError:
        return {}
