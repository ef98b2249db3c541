"""Cells on Ray: a cluster of its own in this machine, or one that is there already."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any, Self

from shoal.errors import ConfigError, missing_extra, one_line, summary
from shoal.sweep.pool import Ended
from shoal.sweep.work import Work, do_work

EMBEDDED = "local"
"""The address that stands for a cluster of this process's own."""

_EMBEDDED_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # As on macOS: every server of Ray's listens on the loopback address alone, and Ray asks no
    # network which address this machine has.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


class OnRay:
    """Runs cells as tasks of Ray, each in a process of its own that ends with it.

    Ray's own retries are off: whoever counts the tries starts a cell again, and it goes on wherever
    Ray has room, from its folder, which all machines must see under the same path.

    Args:
        address: "local" for a cluster of this process's own, without dashboard and reachable from
            this machine alone; else that of a real one ("auto", "10.0.0.1:6379").
        jobs: how many run at a time; None for as many as the cluster has room for.
        threads: the CPUs that a cell asks for.
        gpus: the share of a GPU that a cell asks for; None for one where there is one.

    Raises:
        ShoalError: Ray is not installed, cannot be reached, or never has room for a cell.
    """

    def __init__(self, address: str, jobs: int | None, threads: int, gpus: float | None) -> None:
        self.jobs = jobs
        own = address == EMBEDDED
        if own:
            os.environ.update(_EMBEDDED_ENVIRONMENT)  # for the processes that Ray starts
        try:
            import ray
        except ImportError as error:
            raise missing_extra("ray", "sweep", "a sweep on Ray") from error
        self._ray: Any = ray
        self._began = not ray.is_initialized()
        if self._began:
            self._connect(address, (jobs or 1) * threads if own else None)
        try:
            asked = _asked(ray.nodes(), threads, gpus)
        except BaseException:
            self.__exit__()
            raise
        self.where = "on Ray in this machine" if own else f"on Ray at {address}"
        # A process for each cell: what a cell leaves behind in it is no other's.
        self._task = ray.remote(max_calls=1, max_retries=0)(do_work).options(**asked)
        self._open: dict[Any, str] = {}

    def _connect(self, address: str, cpus: int | None) -> None:
        said = StringIO()
        try:
            with _own_paths(), redirect_stderr(said):
                self._ray.init(
                    address=address,
                    num_cpus=cpus,
                    include_dashboard=False if cpus else None,
                    log_to_driver=False,
                    configure_logging=False,
                    logging_level=logging.ERROR,
                    **({"_node_ip_address": "127.0.0.1"} if cpus else {}),
                )
        except Exception as error:
            why = one_line(str(error), limit=200)
            raise ConfigError(f"Ray cannot be reached at '{address}': {why}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for reference in getattr(self, "_open", {}):
            self._ray.cancel(reference, force=True)
        if self._began:
            self._ray.shutdown()

    @property
    def free(self) -> bool:
        """Whether fewer than `jobs` are handed over; Ray itself makes the others wait."""
        return self.jobs is None or len(self._open) < self.jobs

    def start(self, work: Work) -> None:
        """Hand a cell to Ray."""
        self._open[self._task.remote(work)] = work.name

    def ended(self) -> list[Ended]:
        """Return the cells whose tasks have ended."""
        if not self._open:
            return []
        done, _ = self._ray.wait([*self._open], num_returns=len(self._open), timeout=0)
        return [self._outcome(self._open.pop(reference), reference) for reference in done]

    def _outcome(self, name: str, reference: Any) -> Ended:
        try:
            return Ended(name, failed=self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:  # it could speak, so it has not died
            return Ended(name, failed=summary(error))
        except self._ray.exceptions.RayError as error:
            return Ended(name, died=f"its process died ({type(error).__name__})")


def _asked(nodes: list[dict[str, Any]], threads: int, gpus: float | None) -> dict[str, float]:
    """Return what a cell asks Ray for; raises if no machine ever has it."""
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    if gpus is None:
        gpus = 1.0 if any(machine.get("GPU") for machine in machines) else 0.0
    wanted = {"CPU": threads, "GPU": gpus}
    if not any(all(m.get(k, 0) >= v for k, v in wanted.items()) for m in machines):
        raise ConfigError(
            f"no machine of this Ray has {threads} CPUs and {gpus:g} GPUs, which a cell asks for: "
            "give fewer threads, or another gpus_per_cell"
        )
    return {"num_cpus": threads, "num_gpus": gpus}


@contextmanager
def _own_paths() -> Iterator[None]:
    """Let the processes that are started inside find what this one finds."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
