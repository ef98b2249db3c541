"""Read a file of weights, or all its shards; code from a file is never run."""

from __future__ import annotations

import argparse
import datetime
import difflib
import json
import re
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from shoal.errors import CheckpointError

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")
_INDEX = ".index.json"  # which file holds which tensor, as Hugging Face's libraries write it
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")

# How torch's restricted reader words a refusal, as opposed to damage.
_REFUSALS = re.compile(
    r"Unsupported (?:global|class)|unrecognized function|TorchScript|GLOBAL|Can only"
)


def read_weights(path: Path) -> Any:
    """Return what a file, all shards of one, or the only file of a folder holds, on the CPU.

    Raises:
        CheckpointError: a file is missing, empty, damaged, of another type, or holds pickled code;
            a folder holds none or several.
    """
    path = _only_file(path) if path.is_dir() else path
    if path.name.endswith(_INDEX):
        return _joined(_of_index(path))
    _check_file(path)
    shard = _SHARD.fullmatch(path.name)
    if shard and int(shard["count"]) > 1:
        return _joined({file: None for file in _shards(path, shard)})
    return _read(path)


def _only_file(folder: Path) -> Path:
    """Return the file of weights of a folder that has only one, or the first of its shards."""
    found: dict[str, Path] = {}
    names = sorted(p.name for p in folder.iterdir() if p.name.endswith((*SUFFIXES, _INDEX)))
    for name in names:
        shard = _SHARD.fullmatch(name)
        whole = f"{shard['stem']}{shard['suffix']}" if shard else name.removesuffix(_INDEX)
        found.setdefault(whole, folder / name)
        if name.endswith(_INDEX):
            found[whole] = folder / name
    if len(found) == 1:
        return next(iter(found.values()))
    hint = f"it holds {', '.join(names[:4])}" if names else "it holds no file of weights"
    raise CheckpointError(f"'{folder}' is a folder: name the file of weights ({hint})")


def _of_index(path: Path) -> dict[Path, set[str] | None]:
    """Return the files that an index names, and the tensors to take of each."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"there is no file '{path}': {_nearest(path)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"'{path}' is damaged: copy it again ({error})") from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"'{path}' has no 'weight_map': give the index of sharded weights")
    wanted: dict[Path, set[str] | None] = {}
    for tensor, name in places.items():
        # A file elsewhere is none of the index's.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(SUFFIXES):
            raise CheckpointError(
                f"'{path}' names {name!r} as a file of weights: give an index whose files lie "
                "beside it"
            )
        named = wanted.setdefault(path.with_name(name), set())
        assert named is not None
        named.add(tensor)
    return wanted


def _shards(path: Path, shard: re.Match[str]) -> list[Path]:
    count = shard["count"]
    if int(count) > 10_000:
        raise CheckpointError(f"'{path}' is one of {count} files: check its name")
    names = (
        f"{shard['stem']}-{number:05}-of-{count}{shard['suffix']}"
        for number in range(1, int(count) + 1)
    )
    return [path.with_name(name) for name in names]


def _joined(files: Mapping[Path, set[str] | None]) -> dict[str, Tensor]:
    """Return the tensors of several files; of each those that are named, or all."""
    whole: dict[str, Tensor] = {}
    for file, names in files.items():
        if not file.is_file():
            raise CheckpointError(
                f"'{file}' is missing: the weights lie in {len(files)} files, put them all into "
                "one folder"
            )
        _check_file(file)
        held = _read(file)
        if not isinstance(held, Mapping):
            raise CheckpointError(f"'{file}' holds no tensors with names: copy it again")
        absent = (names or set()) - set(held)
        if absent:
            raise CheckpointError(f"'{file}' lacks '{min(absent)}': copy it again")
        taken = {name: held[name] for name in (held if names is None else names)}
        both = whole.keys() & taken.keys()
        twice = [name for name in both if not _same(whole[name], taken[name])]
        if twice:
            raise CheckpointError(
                f"'{min(twice)}' is in '{file}' and in another of its {len(files)} files: give the "
                "index of the files, or weights in one file"
            )
        whole |= taken
    return whole


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)


class _Left:
    """Stands for a value of NumPy beside the weights, of which nothing is made.

    A type of NumPy's takes from the file what its arrays hold: pointers, if the file says so.
    """

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def _harmless() -> list[Any]:
    """Return what may lie beside weights, by the names in files: plain values, no code."""
    modules = ("numpy._core.multiarray", "numpy.core.multiarray")  # of NumPy 2, and before
    names = [f"{module}.{name}" for module in modules for name in ("scalar", "_reconstruct")]
    names += ["numpy.dtype", "numpy.ndarray"]
    plain: list[Any] = [argparse.Namespace, types.SimpleNamespace]
    plain += [datetime.datetime, datetime.date, datetime.timedelta, datetime.timezone]
    return [_Left, *((_Left, name) for name in names), *plain]


def _read(path: Path) -> Any:
    """Return what a `.safetensors` file, or one that `torch.save` wrote, holds, on the CPU."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            # On refusing a TorchScript archive torch also warns; one line is enough.
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(_harmless()):
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
