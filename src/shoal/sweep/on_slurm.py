"""Cells on Slurm, by way of submitit: each is a job of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from shoal.errors import ConfigError, missing_extra, one_line
from shoal.sweep.pool import Ended
from shoal.sweep.work import Work, do_work

_CLUSTER = "cluster"


class OnSlurm:
    """Runs cells as jobs of Slurm, which go on by themselves when they are preempted or time out.

    Args:
        folder: where submitit keeps scripts and logs; all machines must see it under this path.
        parameters: submitit's own ("timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb", and
            Slurm's, such as "partition" or "qos"); `cluster` is "slurm", or "local" for processes
            on this machine.
        jobs: how many are handed over at a time; None for all.
        threads: the CPUs that a cell asks for, unless the parameters say so; None leaves it to
            Slurm.

    Raises:
        ShoalError: submitit is not installed, there is no Slurm, or no such parameter.
    """

    def __init__(
        self,
        folder: Path,
        parameters: Mapping[str, Any],
        jobs: int | None,
        threads: int | None,
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise missing_extra("submitit", "sweep", "a sweep on Slurm") from error
        self.jobs = jobs
        cluster = str(parameters.get(_CLUSTER, "slurm"))
        given = {k: v for k, v in parameters.items() if k != _CLUSTER}
        given = {"cpus_per_task": threads, **given} if threads else given
        self._uncompleted: Any = submitit.core.utils.UncompletedJobError
        try:
            self._executor: Any = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self._executor.update_parameters(**_prefixed(given, self._executor, cluster))
        except (NameError, TypeError, ValueError, AssertionError, RuntimeError) as error:
            why = one_line(str(error), limit=200)
            raise ConfigError(f"Slurm cannot be used so: {why}") from error
        self.where = "on Slurm" if cluster == "slurm" else f"by submitit, {cluster}"
        self._task = _Resumable()
        self._open: list[tuple[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for _, job in self._open:
            job.cancel(check=False)

    @property
    def free(self) -> bool:
        """Whether fewer than `jobs` are handed over; Slurm itself makes the others wait."""
        return self.jobs is None or len(self._open) < self.jobs

    def start(self, work: Work) -> None:
        """Submit a cell."""
        try:
            job = self._executor.submit(self._task, work)
        except RuntimeError as error:  # what sbatch says
            why = one_line(str(error), limit=200)
            raise ConfigError(f"Slurm does not take the job: {why}: correct its options") from error
        self._open.append((work.name, job))

    def ended(self) -> list[Ended]:
        """Return the cells whose jobs have ended."""
        done = [(name, job) for name, job in self._open if job.done()]
        self._open = [pair for pair in self._open if pair not in done]
        return [self._outcome(name, job) for name, job in done]

    def _outcome(self, name: str, job: Any) -> Ended:
        try:
            return Ended(name, failed=job.result())
        except self._uncompleted as error:
            lines = str(error).splitlines() or [type(error).__name__]
            return Ended(name, died=f"its job {job.job_id} died ({one_line(lines[0], limit=120)})")


class _Resumable:
    """The work as a job that submitit submits again when Slurm takes its machine away."""

    def __call__(self, work: Work) -> str:
        return do_work(work)

    def checkpoint(self, work: Work) -> Any:
        """Return what is to be submitted: the same, which goes on from its folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, work)


def _prefixed(given: Mapping[str, Any], executor: Any, cluster: str) -> dict[str, Any]:
    """Return parameters as submitit's AutoExecutor takes them: Slurm's own begin with "slurm_"."""
    shared = executor._typed_parameters()
    return {
        name if name in shared or name.startswith(f"{cluster}_") else f"{cluster}_{name}": value
        for name, value in given.items()
    }
