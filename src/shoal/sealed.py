"""JSON files of ours, each with a checksum of what it holds; and text that others write, bounded.

The checksum tells damage and mistakes: a flipped bit, a value changed by hand, a file of another
step. It is no signature, as whoever means harm computes it anew; what a file says is checked
against a schema as well. Files of versions that wrote no checksum are read without one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from shoal.errors import ConfigError, DamagedError, one_line
from shoal.targets import parse_yaml
from shoal.user_paths import user_path

KEY = "sha256"
"""What the checksum is called in a file."""

FILES = "files"
"""What a file calls the checksums of the files beside it that it speaks of, by their paths."""

_MOST_BYTES = 128 * 2**20  # of a JSON file; that of the largest network in timm has 2
_MOST_YAML = 2**20
_MOST_DEPTH = 60
_MOST_VALUES = 10**7  # aliases of YAML counted as often as they stand


def seal(values: Mapping[str, Any], *, finite: bool = True) -> dict[str, Any]:
    """Return JSON values with their checksum.

    Raises:
        ValueError: a number is not `finite`, as JSON wants it.

    Example:
        >>> unseal(json.dumps(seal({"steps": 3})), "a record")
        {'steps': 3}
    """
    plain = json.loads(json.dumps(values, allow_nan=not finite))
    return {**plain, KEY: _digest(plain)}


def sealed_text(values: Mapping[str, Any], *, finite: bool = True) -> str:
    """Return the text of a JSON file with its checksum; see `seal`."""
    return json.dumps(seal(values, finite=finite), indent=2) + "\n"


def read_sealed(path: Path, *, required: bool = False, finite: bool = True) -> dict[str, Any]:
    """Return what a JSON file holds without its checksum, which must fit; see `unseal`."""
    return unseal(read_text(path), f"'{path}'", required=required, finite=finite)


def unseal(text: str, what: str, *, required: bool = False, finite: bool = True) -> dict[str, Any]:
    """Return the values of a JSON object without their checksum, which must fit.

    `required` refuses a text without one, as it is where the text speaks of other files. Raises
    `DamagedError`, which begins with `what`.
    """
    values = parsed(text, what, finite=finite)
    if KEY in values or FILES in values or required:
        check_seal(values, what)
    files = values.get(FILES, {})
    names = [*files, *files.values()] if isinstance(files, dict) else [None]
    if not all(isinstance(name, str) and ".." not in name and name[:1] != "/" for name in names):
        raise DamagedError(f"{what} is damaged: it speaks of files that lie elsewhere")
    return {key: value for key, value in values.items() if key != KEY}


def parsed(text: str, what: str, *, finite: bool = True) -> dict[str, Any]:
    """Return the JSON object in a text, whatever its checksum; see `unseal`."""
    only: Any = {"parse_constant": _refuse, "parse_float": _finite} if finite else {}
    values = _bounded(lambda: json.loads(text, **only), what)
    if not isinstance(values, dict):
        raise DamagedError(f"{what} is damaged: it holds no record")
    return values


def check_seal(values: Mapping[str, Any], what: str) -> None:
    """Raise `DamagedError` unless the checksum in some values is theirs."""
    if values.get(KEY) != _digest({key: value for key, value in values.items() if key != KEY}):
        raise DamagedError(
            f"{what} is damaged or was changed: its checksum is not the one it was written with"
        )


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    if not path.is_file():  # missing, or a pipe, which would never end
        raise DamagedError(f"'{path}' is missing")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, KEY).hexdigest()
    except OSError as error:
        raise DamagedError(f"'{path}' cannot be read: {error.strerror or error}") from error


def check_file(record: Path, values: Mapping[str, Any], name: str) -> None:
    """Raise `DamagedError` if the record in `values` speaks of another file than lies beside it."""
    wanted = values.get(FILES, {}).get(name)
    if wanted is not None and file_digest(record.parent / name) != wanted:
        raise DamagedError(
            f"'{record.parent / name}' is not the file that {record.name} was written with"
        )


def read_yaml(path: Path) -> Any:
    """Return what a YAML file of the user's holds; a large or deep one is refused unread."""
    text = read_text(path, _MOST_YAML)
    steps = (1 if sign in "[{" else -1 for sign in text if sign in "[]{}")
    if max(accumulate(steps), default=0) > _MOST_DEPTH:  # which takes PyYAML long to find
        raise DamagedError(f"'{path}' is damaged: it is nested too deeply")
    return _bounded(lambda: parse_yaml(text), f"'{path}'")


def read_options(path: str | Path) -> dict[str, Any]:
    """Return the options in a YAML file of the user's, by name; an empty file has none.

    Raises:
        ConfigError: there is no such file, it cannot be read, or it holds something else.
    """
    file = user_path(path)
    if not file.exists():
        raise ConfigError(f"there is no configuration file '{file}'")
    try:
        values = read_yaml(file)
    except DamagedError as error:
        why = one_line(str(error.__cause__ or error))
        raise ConfigError(f"'{file}' cannot be read as YAML: {why}") from error
    if not isinstance(values, dict | None):
        raise ConfigError(f"'{file}' must hold 'option: value' lines")
    return {str(name): value for name, value in (values or {}).items()}


def _digest(values: Mapping[str, Any]) -> str:
    """Return the checksum of JSON values, which does not hang on how they are laid out."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_text(path: Path, most: int | None = None) -> str:
    """Return the text of a file of at most so many bytes; raises `DamagedError`."""
    most = most or _MOST_BYTES
    try:
        if not path.is_file():  # or it is a pipe, which would never end
            raise DamagedError(f"'{path}' is missing")
        if path.stat().st_size > most:
            raise DamagedError(f"'{path}' is damaged: it has more than {most >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"'{path}' cannot be read: {one_line(str(error))}") from error


def _bounded(read: Callable[[], Any], what: str) -> Any:
    """Return what `read` gives if it is neither too deep nor, as a tree, too large."""
    try:
        values = read()
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise DamagedError(
            f"{what} is damaged and cannot be read: {one_line(str(error))}"
        ) from error
    level, left = [values], _MOST_VALUES
    for _ in range(_MOST_DEPTH):
        level = [value for value in level if isinstance(value, dict | list)]
        left -= sum(map(len, level))
        if left < 0 or not level:
            break
        level = [c for v in level for c in (v.values() if isinstance(v, dict) else v)]
    if level:
        raise DamagedError(f"{what} is damaged: it is nested too deeply, or too large")
    return values


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value
