"""What is written as JSON: frozen dataclasses with `to_dict` and `from_dict`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

from shoal.errors import DamagedError, RunError
from shoal.merge.report import MergeReport
from shoal.schema import make


@dataclass(frozen=True)
class Record:
    """Fields that are written as JSON; those with a default may be missing, as in old records."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values; `from_dict` is the way back."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote; raises `RunError` if something is missing."""
        for f in fields(cls):
            if f.name not in data and f.default is MISSING and f.default_factory is MISSING:
                raise RunError(f"a record of the run has no '{f.name}': the folder is damaged")
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        known = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
        try:
            return make(cls, known)
        except DamagedError as error:
            raise RunError(f"a record of the run is damaged: {error}") from error


def plain(value: Any) -> Any:
    """Return a value of a record as JSON has it."""
    if isinstance(value, Record | MergeReport):
        return value.to_dict()
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value
