"""The file that lets an interrupted fit go on: written whole or not at all, and never trusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.distributed import barrier, is_main, sum_across, world
from shoal.files import write_file
from shoal.options import Recipe

__all__ = ["cpu_state", "fingerprint", "load_checkpoint", "save_checkpoint"]

FORMAT = "shoal.fit"
VERSION = 2


def cpu_state(network: nn.Module) -> dict[str, Any]:
    """Return a copy of the network's state on the CPU."""
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
        for name, value in network.state_dict().items()
    }


def fingerprint(
    network: nn.Module,
    recipe: Recipe,
    *,
    epochs: int,
    seed: int,
    first_epoch: int,
    batches: int,
    hooks: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what a checkpoint must agree on with the fit that continues from it.

    Of the network, that is the shapes of its parameters; of the hooks, their names.
    """
    shapes = {name: list(parameter.shape) for name, parameter in network.named_parameters()}
    run = {"epochs": epochs, "seed": seed, "first_epoch": first_epoch, "batches": batches}
    return {"recipe": recipe.to_dict(), "shapes": shapes, "hooks": dict(hooks), **run}


def save_checkpoint(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write `state` to `path` in one piece; the main process writes, the others wait.

    Whatever happens on the way, the file is the old one or the new one.
    """
    if is_main():
        payload = {"format": FORMAT, "version": VERSION, "fit": identity, "state": state}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda temporary: torch.save(payload, temporary))
    barrier()


def load_checkpoint(
    path: Path, identity: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, str | None]:
    """Return the state saved at `path`, or None with a note that says why it is not used.

    A missing file gives neither. A file that is damaged or belongs to another fit is not used: the
    fit starts over and replaces it after the first epoch. Several processes use it only if all of
    them can read it.
    """
    state, note = _read(path, identity)
    readers = int(sum_across(torch.tensor(int(state is not None))).item())
    if 0 < readers < world():
        return None, f"checkpoint {path.name} is not readable by every process: started over"
    return state, note


def _read(path: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    if not path.exists():
        return None, None
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch.load fails in as many ways as there are damaged files
        return None, f"checkpoint {path.name} is damaged or no checkpoint: started over"
    is_ours = isinstance(payload, dict) and payload.get("format") == FORMAT
    if not is_ours or payload.get("version") != VERSION:
        return None, f"checkpoint {path.name} has an unknown format: started over"
    if payload.get("fit") != identity:
        return None, f"checkpoint {path.name} belongs to another fit: started over"
    state: dict[str, Any] = payload["state"]
    return state, None
