"""The file that lets an interrupted fit go on: data alone, written whole or not at all."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoal.files import write_file

_FORMAT = {"format": "shoal.fit", "version": 3}


def write_checkpoint(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write the state of the fit of this identity, with its folder if need be."""
    payload = _plain({**_FORMAT, "fit": identity, "state": state})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda temporary: torch.save(payload, temporary))


def read_checkpoint(
    path: Path, identity: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, str | None]:
    """Return the state saved at `path`, or None and, if there is a file, why it is of no use."""
    if not path.exists():
        return None, None
    if not path.is_file():
        return None, f"{path.name} is no file"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # by the checksums that torch.save writes and nobody reads
        payload = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # both fail in as many ways as there are damaged files
        damaged = path.name
    if damaged:
        return None, f"{path.name} is damaged or no checkpoint"
    if not isinstance(payload, dict) or not _FORMAT.items() <= payload.items():
        return None, f"{path.name} has an unknown format"
    if payload.get("fit") != identity:
        return None, f"{path.name} belongs to another fit"
    if not isinstance(payload.get("state"), dict):
        return None, f"{path.name} has no state"
    return payload["state"], None


def _plain(value: Any) -> Any:
    """Return values with NumPy's, such as a hook may leave, as Python's own.

    The file is read as data, and NumPy's types are code to a reader.
    """
    if isinstance(value, Mapping):
        return {_plain(name): _plain(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_plain(own) for own in value]
    if isinstance(value, tuple):
        return tuple(_plain(own) for own in value)
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value
