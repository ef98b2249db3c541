"""The result of a run's folder or a saved network, merged: what is to be used."""

from __future__ import annotations

from pathlib import Path

from shoal.errors import RunError
from shoal.merge.merge import merge_
from shoal.network import Network
from shoal.store import load

__all__ = ["is_run", "open_result", "open_trained"]


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's, finished or not."""
    return (folder / "identity.json").exists() or (folder / "result.json").exists()


def open_trained(text: str) -> Network:
    """Return the network of a folder as it was trained: of a run, the result.

    Raises:
        RunError: there is no such folder.
        PlanError: the run has no result yet, or the folder is damaged or none of ours.
    """
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise RunError(
            f"there is no folder '{text}': give the --out folder of a run, or one that shoal.save "
            "wrote"
        )
    return load(folder)


def open_result(text: str, batch: int | None = None) -> Network:
    """Return the network of a folder, merged.

    A finished run holds it merged already, for the run's own batch size and machine.

    Args:
        text: the folder.
        batch: merge for this batch size; None takes what the run holds, or 1.

    Raises:
        ShoalError: as `open_trained`.
    """
    network = open_trained(text)
    folder = Path(text).expanduser()
    held = (folder / "merged" / "plan.json").exists() and (folder / "result.json").exists()
    if batch is None and held:
        return load(folder / "merged")
    merge_(network, batch=batch or 1)
    return network
