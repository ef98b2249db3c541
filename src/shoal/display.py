"""How things are shown: lines on a console, and objects in notebooks by rooms above them."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import sys
from collections.abc import Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

from rich.cells import cell_len

if TYPE_CHECKING:
    from rich.console import Console


class Shown:
    """What is shown as HTML in a notebook, by a function that `shown_by` names as "module:name".

    It is named and not imported, as entry points are: what shows a result lies above it.
    """

    shown_by: ClassVar[str] = ""

    def _repr_html_(self) -> str:
        return str(above(self.shown_by)(self))


def in_notebook() -> bool:
    """Return whether a Jupyter kernel runs this code; its library may be imported for less."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def above(name: str) -> Any:
    """Return what "module:name" is, of a room above the one that asks."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def counted(number: int, word: str) -> str:
    """Return a number of things in words.

    Example:
        >>> counted(1, "cell"), counted(2, "cell")
        ('1 cell', '2 cells')
    """
    return f"{number} {word}{'s' * (number != 1)}"


def three_digits(value: float) -> str:
    """Return a number with three digits, or whole: never with a power of ten.

    Example:
        >>> three_digits(0.00004567), three_digits(0.04567), three_digits(2345.6)
        ('0.0000457', '0.0457', '2,346')
    """
    return f"{value:,.0f}" if value >= 999.5 else f"{Decimal(f'{value:.3g}'):f}"


def to_type(*words: object) -> str:
    """Return a command of shoal's, on a line of its own, as a shell takes it.

    Example:
        >>> print("as a file:" + to_type("export", "my run"))
        as a file:
          shoal export 'my run'
    """
    return f"{_WHOLE}shoal {shlex.join(map(str, words))}"


_WHOLE = "\n  "  # begins a line that is to be copied, and so never broken
_INDENT = "  "  # of what continues a line
# A path in quotes is one word, and so is a number with its unit.
_UNIT = r" (?:%|×|s|ms|min|h|points?|bits|MB|GiB)(?![\w/])[^\s\w]*"
_WORD = re.compile(rf"(?<!\S)'[^'\n]*/[^'\n]*'\S*|(?<!\S)\S*\d{_UNIT}|\S+")
# Where a long name may break, where a part of it that is still too long may, and what is left then.
_IN_NAME = (
    re.compile(r"(?<=[.,:/&?=])(?![.,:/&?=])"),
    re.compile(r"(?<=[_+-])(?![_+-])"),
    re.compile(r"(?<=.)(?=.)"),
)


# What moves a terminal's cursor, colours it or turns text around; lines and tabs stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """Return a text without what moves a terminal's cursor or colours it; anybody may write files.

    Example:
        >>> harmless("a note" + chr(27) + "[2J")
        'a note?[2J'
    """
    return _CONTROL.sub("?", text)


def print_lines(console: Console, *lines: str) -> None:
    """Print lines, broken between words where the terminal ends; a path or a command stays whole.

    Where no terminal reads them, they are not broken at all.
    """
    known = console.is_terminal or "COLUMNS" in os.environ
    for line in map(harmless, lines):
        for text in broken(line, console.width) if known else [line]:
            console.print(text, markup=False, soft_wrap=True)


def broken(text: str, width: int) -> list[str]:
    """Return a text in lines of at most that width; a path that is longer stays whole.

    A line of the text that begins with two spaces is a command or code to copy: it is not broken.
    """
    lines: list[str] = []
    for part in text.split("\n"):
        if part.startswith(_INDENT) or cell_len(part) <= width:
            lines.append(part)
            continue
        first, *rest = _WORD.findall(part)
        lines.append(first)
        for word in rest:
            if cell_len(f"{lines[-1]} {word}") <= width:
                lines[-1] += f" {word}"
            elif "/" in word:
                lines.append(_INDENT + word)
            else:
                names = _broken_name(word, width - len(_INDENT), _IN_NAME)
                lines += (_INDENT + name for name in names)
    return lines


def folded_text(text: str, width: int) -> list[str]:
    """Return a text in lines of at most that width, for the cell of a table.

    Words that are longer break in the way of names: after dots, commas, slashes and the like, else
    after underscores and hyphens, and elsewhere only if nothing of the kind is there.

    Example:
        >>> folded_text("collapsed layer2.1.collapsed..layer2.2.collapsed", 22)
        ['collapsed', 'layer2.1.collapsed..', 'layer2.2.collapsed']
    """
    if cell_len(text) <= width:
        return [text]
    lines: list[str] = []
    for word in text.split():
        if lines and cell_len(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines += _broken_name(word, width, _IN_NAME)
    return lines


def longest_part(text: str) -> int:
    """Return the width of the longest part of a text that should not be broken."""
    parts = (part for word in text.split() for part in _IN_NAME[0].split(word))
    return max(map(cell_len, parts), default=0)


def _broken_name(word: str, width: int, at: Iterable[re.Pattern[str]]) -> list[str]:
    first, *later = at
    lines: list[str] = []
    for part in first.split(word):
        if lines and cell_len(lines[-1] + part) <= width:
            lines[-1] += part
        elif cell_len(part) <= width or not later:
            lines.append(part)
        else:
            lines += _broken_name(part, width, later)
    return lines
