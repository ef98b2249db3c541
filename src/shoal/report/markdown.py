"""Tables as Markdown, of the kind that GitHub renders."""

from __future__ import annotations

from shoal.report.table import Table


def markdown(table: Table) -> str:
    """Return a table as Markdown: its title as a paragraph before it, its notes after it."""
    lines = [
        _line([column.name for column in table.columns]),
        "|" + "|".join("---:" if c.align == "right" else "---" for c in table.columns) + "|",
        *map(_line, table.texts()),
    ]
    parts = [*filter(None, [table.title]), "\n".join(lines), *table.notes]
    return "\n\n".join(parts) + "\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
