"""Read a file of weights into plain data, without ever running code from it."""

from __future__ import annotations

import difflib
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from shoal.errors import CheckpointError

__all__ = ["SUFFIXES", "read_weights"]

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")

# How torch's restricted reader words a refusal, as opposed to damage.
_REFUSALS = re.compile(r"Unsupported (?:global|class)|unrecognized function|TorchScript|GLOBAL")


def read_weights(path: Path) -> Any:
    """Return what a `.safetensors` file, or one that `torch.save` wrote, holds, on the CPU.

    Raises:
        CheckpointError: the file is missing, a folder, empty, damaged, of another type, or holds
            pickled code.
    """
    _check_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            # On refusing a TorchScript archive torch also warns; one line is enough.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Damaged bytes make the readers fail in any way: EOFError, KeyError, IndexError, …
        if _REFUSALS.search(str(error)):
            named = re.search(r"GLOBAL (\S+)", str(error))
            what = f" ({named[1]})" if named else ""
            raise CheckpointError(
                f"'{path}' holds pickled code{what}, which shoal never runs: where you trust the "
                "file, load it in your own program and save plain weights by "
                "`torch.save(model.state_dict(), 'weights.pt')`"
            ) from error
        # torch's own text gives advice that does not apply; its first sentence is the reason.
        message = re.split(r"\n|(?<=\w)\. ", str(error))[0][:160]
        reason = f"{type(error).__name__}: {message}".removesuffix(": ")
        raise CheckpointError(
            f"'{path}' is damaged, cut short or not a file of weights: copy it again ({reason})"
        ) from error


def _check_file(path: Path) -> None:
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES)
        hint = f"it holds {', '.join(inside[:4])}" if inside else "it holds no file of weights"
        raise CheckpointError(f"'{path}' is a folder: name the file of weights ({hint})")
    if not path.is_file():
        raise CheckpointError(f"there is no file '{path}': {_nearest(path)}")
    if path.suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise CheckpointError(
            f"'{path}' does not look like a file of weights: give one that ends in {known}"
        )
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}") from error
    if not start:
        raise CheckpointError(f"'{path}' is empty: copy or download it again")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"'{path}' is a Git LFS pointer, not the weights: run `git lfs pull` in its folder"
        )


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder '{path.parent}' either, check the path"
    names = sorted(p.name for p in path.parent.iterdir() if p.is_file())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    near = near or [name for name in names if name.endswith(SUFFIXES)][:3]
    if near:
        return "did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    return "its folder holds no file of weights, check the path"
