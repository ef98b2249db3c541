"""What a file of ours may hold, checked by pydantic against the types of Python.

Nothing is converted: a text is no number, and a number of 3.0 no count.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from shoal.errors import DamagedError, one_line

T = TypeVar("T")

Finite = Annotated[float, Field(allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**62)]

MOST_ELEMENTS = 2**36
"""Of one tensor: 256 GiB in float32."""


def _small(shape: list[int | None]) -> list[int | None]:
    if math.prod(size or 1 for size in shape) > MOST_ELEMENTS:
        raise ValueError(f"a tensor of {shape} is larger than any memory")
    return shape


Shape = Annotated[list[Annotated[int, Field(ge=0, le=2**40)] | None], AfterValidator(_small)]
"""Of a tensor; None is a size that varies."""


def conform(kind: type[T], value: Any) -> T:
    """Return a value that is of a type; raise `DamagedError`, which says where, if it is not."""
    try:
        found: T = _adapter(cast(Any, kind)).validate_python(value, strict=True)
        return found
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DamagedError(f"{place}: {one_line(first['msg'], 200)}".removeprefix(": ")) from error


def check_value(kind: Any, value: Any, what: str) -> None:
    """Raise `DamagedError`, which begins with `what`, if a value is not of a type."""
    try:
        conform(kind, value)
    except DamagedError as error:
        raise DamagedError(f"{what}: {error}") from error


def make(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return a dataclass of fields that are of their types; see `conform`."""
    hints = _hints(cast(Any, kind))
    for name, value in values.items():
        check_value(hints[name], value, name)
    return kind(**values)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
