"""How things are shown: lines on a console, and objects in notebooks by rooms above them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from rich.console import Console


class Shown:
    """What is shown as HTML in a notebook, by a function that `shown_by` names as "module:name".

    It is named and not imported, as entry points are: what shows a result lies above it.
    """

    shown_by: ClassVar[str] = ""

    def _repr_html_(self) -> str:
        return str(above(self.shown_by)(self))


def above(name: str) -> Any:
    """Return what "module:name" is, of a room above the one that asks."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def print_lines(console: Console, *lines: str) -> None:
    """Print lines as they are; the terminal wraps them, so that a path or a command stays whole."""
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
