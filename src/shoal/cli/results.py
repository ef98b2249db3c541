"""The result of a run's folder or a saved network, merged: what is to be used."""

from __future__ import annotations

from pathlib import Path

from shoal.merge.loading import is_run, load
from shoal.merge.merge import merge_
from shoal.network import Network
from shoal.network.saving import is_saved

__all__ = ["is_run", "open_dense", "open_result", "open_trained"]


def open_trained(text: str) -> Network:
    """Return the network of a folder as it was trained: of a run, the result.

    Raises:
        PlanError: there is no such folder, the run has no result yet, or the folder is damaged or
            none of ours.
    """
    return load(text, "best" if is_saved(Path(text).expanduser() / "best") else None)


def open_dense(text: str) -> Network | None:
    """Return the dense network of a run's folder; None for anything else."""
    folder = Path(text).expanduser() / "steps" / "000"
    return open_trained(str(folder)) if folder.is_dir() else None


def open_result(text: str, batch: int | None = None) -> Network:
    """Return the network of a folder, merged.

    A finished run holds it merged already, for the run's own batch size and machine.

    Args:
        text: the folder.
        batch: merge for this batch size; None takes what the run holds, or 1.

    Raises:
        ShoalError: as `open_trained`.
    """
    if batch is None and (Path(text).expanduser() / "result.json").exists():
        return load(text)
    network = open_trained(text)
    merge_(network, batch=batch or 1)
    return network
