"""Plain names of models, such as `resnet50`: which library has a model of that name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping

from shoal.compat import import_timm, import_torchvision
from shoal.errors import NameNotFoundError, ShoalError

_PLAIN = re.compile(r"[A-Za-z0-9][\w.-]*")


def is_plain(text: str) -> bool:
    """Whether a text may be the name of a library's model, and is no path."""
    return _PLAIN.fullmatch(text) is not None


def libraries_of(name: str, own: Iterable[str]) -> list[str]:
    """Return the libraries that have a model of that name: torchvision, then timm, then shoal.

    Shoal's `own` names are given. Libraries that are not installed are passed over. Raises
    `NameNotFoundError`, with close matches, where none has it.
    """
    known, lacking = _known({"torchvision": _torchvision, "timm": _timm, "shoal": lambda: own})
    # timm's names may have the tag of a set of weights: resnet50.a1_in1k
    found = [
        library
        for library, names in known.items()
        if name in names or (library == "timm" and name.partition(".")[0] in names)
    ]
    if found:
        return found
    owners = {each: library for library in reversed(known) for each in known[library]}
    near = difflib.get_close_matches(name, owners, n=3, cutoff=0.6)
    hint = f"install {' or '.join(lacking)}, or write" if lacking else "write"
    told = f"{hint} path/file.py:factory or package.module:factory for a model of your own"
    if near:
        told = f"did you mean {' or '.join(repr(f'{owners[n]}:{n}') for n in near)}?"
    where = " nor ".join(known)
    raise NameNotFoundError(f"'{name}' is no folder here, and no model of {where}: {told}")


def _known(
    libraries: Mapping[str, Callable[[], Iterable[str]]],
) -> tuple[dict[str, set[str]], list[str]]:
    """Return the names by library, and the libraries that are not installed."""
    known: dict[str, set[str]] = {}
    lacking = []
    for library, names in libraries.items():
        try:
            known[library] = set(names())
        except ShoalError:
            lacking.append(library)
    return known, lacking


def _torchvision() -> Iterable[str]:
    api = import_torchvision().models
    names: Iterable[str] = api.list_models(module=api)
    return names


def _timm() -> Iterable[str]:
    names: Iterable[str] = import_timm().list_models()
    return names
