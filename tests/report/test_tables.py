"""Tables know no renderer; each renderer shows all of them."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest
from rich.console import Console

import shoal.report
from shoal.report import (
    Compared,
    Comparison,
    comparison_tables,
)
from shoal.report.markdown import markdown
from shoal.report.page import html_table
from shoal.report.table import Column, Quantity, Row, Table
from shoal.report.terminal import print_table

ROOM = Path(shoal.report.__file__).parent
TABLE = Table(
    "a <small> [table]",
    (
        Column("name", align="left"),
        Column("MACs", "count", meaning='of one "sample"', priority=2),
        Column("dense / this", "×", priority=1),
    ),
    (
        Row(("dense", 68_860_000, "1")),
        Row(("a|b [red]", None, Quantity(1.5, "×", 1.4, 1.6)), "strong", last=True),
        Row(("<i>", 7, Quantity(1.01, "×", 0.9, 1.2)), "faint"),
    ),
    ("a note & more",),
)


def printed(table: Table, width: int, **options: bool) -> list[str]:
    file = io.StringIO()
    print_table(Console(file=file, width=width), table, **options)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_the_terminal_shows_columns_and_notes() -> None:
    assert printed(TABLE, 60) == [
        "a <small> [table]",
        " name           MACs                 dense / this",
        "──────────────────────────────────────────────────",
        " dense       68.86 M                            1",
        " a|b [red]         –        1.50 × (1.40 to 1.60)",
        "",
        " <i>               7   not certain (0.90 to 1.20)",
        "a note & more",
        "",
    ]


def test_markdown_escapes_what_it_would_read() -> None:
    assert (
        markdown(TABLE)
        == """a \\<small> [table]

| name | MACs | dense / this |
|---|---:|---:|
| dense | 68.86 M | 1 |
| a\\|b [red] | – | 1.50 × (1.40 to 1.60) |
| \\<i> | 7 | not certain (0.90 to 1.20) |

a note & more
"""
    )


def test_html_escapes_everything() -> None:
    assert html_table(TABLE).splitlines() == [
        "<h2>a &lt;small&gt; [table]</h2>",
        '<div class="shoal" tabindex="0">',
        "<table>",
        '<thead><tr><th>name</th><th class="right" title="of one &quot;sample&quot;">MACs</th>'
        '<th class="right">dense / this</th></tr></thead>',
        "<tbody>",
        '<tr><td class="short">dense</td><td class="right">68.86 M</td>'
        '<td class="right">1</td></tr>',
        '<tr class="strong last"><td class="short">a|b [red]</td><td class="right">–</td>'
        '<td class="right">1.50 × <br class="narrow">(1.40 to 1.60)</td></tr>',
        '<tr class="faint"><td class="short">&lt;i&gt;</td><td class="right">7</td>'
        '<td class="right">not certain <br class="narrow">(0.90 to 1.20)</td></tr>',
        "</tbody>",
        "</table>",
        "</div>",
        '<p class="note">a note &amp; more</p>',
    ]


def test_on_a_phone_a_doubt_stands_below_its_figure() -> None:
    doubtful = Row((Quantity(2.0, "×", trusted=False),))
    html = html_table(Table("", (Column("dense / this"),), (doubtful,)))
    assert '2.00 ×, <br class="narrow">not to be trusted</td>' in html


def test_columns_with_commas_in_their_names_are_told_apart() -> None:
    wide = tuple(Column(name, priority=1) for name in ("work, merged", "work, here"))
    table = Table("", (Column("a"), *wide), (Row(("1", "2" * 30, "3" * 30)),))
    shown = " ".join(line.strip() for line in printed(table, 30))
    assert "left out for lack of room: work, merged; work, here; --verbose" in shown


def test_what_has_no_room_is_left_out_and_named() -> None:
    lines = printed(TABLE, 42)
    assert "MACs" not in lines[1]
    assert "dense / this" in lines[1]
    assert any(line.startswith("left out") and "MACs" in line for line in lines)
    lines = printed(TABLE, 20)
    assert lines[1].split() == ["name"]
    assert "1.50 × (1.40 to 1.60)" in " ".join(printed(TABLE, 20, verbose=True))


def test_long_text_wraps_and_loses_nothing() -> None:
    text = " ".join(f"layer{n}.conv" for n in range(30))
    table = Table("", (Column("layers", align="left"), Column("n")), (Row((text, 1)),))
    lines = printed(table, 40)
    assert max(map(len, lines)) <= 40
    words = [word for line in lines[2:] for word in line.split()]
    assert sorted(words) == sorted([*text.split(), "1"])


def test_networks_side_by_side_fit_80_columns_and_verbose_shows_all() -> None:
    name = "torchvision:resnet18?num_classes=10, batch norms folded"
    found = Comparison([Compared(name, 90.0, 88.0, 13, 18, 10**9, 10**7)] * 2, [], "", [])
    (table,) = comparison_tables(found)
    lines = printed(table, 80)
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("left out") and "rectifiers" in line for line in lines)
    shown = printed(table, 80, verbose=True)
    assert all(column.name in shown[1] for column in table.columns)


def test_networks_side_by_side_show_the_quality_by_its_name() -> None:
    compared = [Compared("one", 0.9, None, 13, 18, 10**9, 10**7)]
    for name, unit, heads, text in (
        ("top-1", "%", ["validation", "test"], "0.90 %"),
        ("R²", "%", ["validation R²", "test R²"], "0.90 %"),
        ("cells found", "", ["validation cells found", "test cells found"], "0.90"),
    ):
        found = Comparison(compared, [], "", [], quality_name=name, quality_unit=unit)
        (table,) = comparison_tables(found)
        assert [column.name for column in table.columns[1:3]] == heads
        assert table.texts()[0][1:3] == [text, "–"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.00001234, "0.0000123"), (0.04567, "0.0457"), (3.14159, "3.14"),
        (999.4, "999"), (999.6, "1,000"), (2345.6, "2,346"), (1234567.0, "1,234,567"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("unit", ["ms", "Wh", "g"])
def test_a_measured_amount_has_three_digits_and_no_power_of_ten(
    value: float, text: str, unit: str
) -> None:
    assert str(Quantity(value, unit)) == f"{text} {unit}"


@pytest.mark.parametrize("file", sorted(ROOM.glob("*.py")), ids=lambda file: file.name)
def test_only_what_is_for_a_terminal_knows_rich(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    knows = any(module.partition(".")[0] == "rich" for module in modules)
    assert knows == (file.name in ("terminal.py", "progress.py", "sweep_progress.py"))
