"""Tables as LaTeX, for papers; they need the package booktabs."""

from __future__ import annotations

import re

from shoal.report.table import Table, is_best

_SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "×": r"$\times$", "–": "--", "→": r"$\rightarrow$", "≥": r"$\geq$", "≤": r"$\leq$",
    "…": r"\dots{}", "²": r"$^2$", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip
_SPECIAL = re.compile("|".join(map(re.escape, _SIGNS)))


def latex(table: Table) -> str:
    """Return a table as a LaTeX table: its title and notes are the caption, the best is bold."""
    kinds = "".join("r" if column.align == "right" else "l" for column in table.columns)
    lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{kinds}}}", r"\toprule"]
    lines += [_line([_escaped(column.name) for column in table.columns]), r"\midrule"]
    last = len(table.rows) - 1
    for number, (row, texts) in enumerate(zip(table.rows, table.texts(), strict=True)):
        cells = zip(row.cells, map(_escaped, texts), strict=True)
        lines.append(_line([rf"\textbf{{{t}}}" if is_best(cell) else t for cell, t in cells]))
        if row.last and number != last:
            lines.append(r"\midrule")
    caption = ". ".join(_escaped(text) for text in (table.title, *table.notes) if text)
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}.}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda found: _SIGNS[found[0]], text)
