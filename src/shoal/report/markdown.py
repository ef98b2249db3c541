"""Tables as Markdown, of the kind that GitHub renders."""

from __future__ import annotations

import re

from shoal.report.table import Table, is_best


def markdown(table: Table) -> str:
    """Return a table as Markdown: its title as a paragraph before it, its notes after it."""
    lines = [
        _line([_plain(column.name) for column in table.columns]),
        "|" + "|".join("---:" if c.align == "right" else "---" for c in table.columns) + "|",
        *(
            _line(
                [
                    _bold(_plain(text)) if is_best(cell) else _plain(text)
                    for cell, text in zip(row.cells, texts, strict=True)
                ]
            )
            for row, texts in zip(table.rows, table.texts(), strict=True)
        ),
    ]
    title, *notes = (_plain(text) for text in (table.title, *table.notes))
    parts = [*filter(None, [title]), "\n".join(lines), *notes]
    return "\n\n".join(parts) + "\n"


def _bold(text: str) -> str:
    return f"**{text}**"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


_SPECIAL = re.compile(r"[\\`*<|]|\[(?=[^\]]*\]\()|(?<!\w)_|_(?!\w)")  # within words "_" is itself


def _plain(text: str) -> str:
    """Return a text so that it is shown as it is."""
    return _SPECIAL.sub(lambda found: f"\\{found[0]}", text)
