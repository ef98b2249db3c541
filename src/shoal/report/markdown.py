"""Tables as Markdown, of the kind that GitHub renders."""

from __future__ import annotations

from shoal.report.table import Table, is_best


def markdown(table: Table) -> str:
    """Return a table as Markdown: its title as a paragraph before it, its notes after it."""
    lines = [
        _line([column.name for column in table.columns]),
        "|" + "|".join("---:" if c.align == "right" else "---" for c in table.columns) + "|",
        *(
            _line(
                [
                    _bold(text) if is_best(cell) else text
                    for cell, text in zip(row.cells, texts, strict=True)
                ]
            )
            for row, texts in zip(table.rows, table.texts(), strict=True)
        ),
    ]
    parts = [*filter(None, [table.title]), "\n".join(lines), *table.notes]
    return "\n\n".join(parts) + "\n"


def _bold(text: str) -> str:
    return f"**{text}**"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
