"""The limits that CONTRIBUTING.md sets to files and functions of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import shoal

SOURCE = Path(shoal.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))


def test_a_file_has_at_most_400_lines_and_says_what_it_is_about() -> None:
    long = {file.name: n for file in FILES if (n := len(file.read_text().splitlines())) > 400}
    assert long == {}
    silent = [file for file in FILES if ast.get_docstring(ast.parse(file.read_text())) is None]
    assert silent == []


def unexplained(file: Path) -> Iterator[str]:
    """Yield the functions of over 60 lines that no comment before them explains."""
    lines = file.read_text().splitlines()
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.FunctionDef) or node.end_lineno is None:
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        if node.end_lineno - node.lineno >= 60 and "# Long" not in lines[first - 2]:
            yield f"{file.relative_to(SOURCE)}: {node.name}"


def test_a_function_of_over_60_lines_says_why() -> None:
    assert [name for file in FILES for name in unexplained(file)] == []
