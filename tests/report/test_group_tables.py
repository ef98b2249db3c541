"""A sweep's runs side by side: over seeds, the best in bold, in every form."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from shoal import published
from shoal.report.group_tables import groups_csv, groups_table, open_table
from shoal.report.html import html_table
from shoal.report.latex import latex
from shoal.report.markdown import markdown
from shoal.report.table import Column, Quantity, Row, Table
from shoal.report.terminal import print_table
from shoal.sweep.groups import Group, Spread, best


def group(method: str, tests: list[float], speedup: float, **changes: Any) -> Group:
    figures = {
        "removed": Spread.of([8] * len(tests)),
        "val": Spread.of([value + 1 for value in tests]),
        "test": Spread.of(tests),
        "dense_test": Spread.of([92.0] * len(tests)),
        "speedup": Spread.of([speedup] * len(tests)),
        "macs_ratio": Spread.of([2.0] * len(tests)),
        "seconds": Spread.of([90.0]),
    }
    known = published.find(model="resnet18_cifar", data="cifar10", method=method, removed=8)
    values: dict[str, Any] = {
        "model": "shoal:resnet18_cifar", "data": "cifar10:data", "method": method, "variant": "",
        "seeds": tuple(range(len(tests))), "open": {}, "names": (), "quality_name": "top-1",
        "quality_unit": "%", "unit": "rectifiers", "total": 17, "figures": figures,
        "trusted": True, "published": known,
    }  # fmt: skip
    return Group(**values | changes)


GROUPS = [
    group("easier", [90.0, 92.0], 1.5),
    group("egp", [89.0], 1.75, variant="per_step=2", open={"egp-x-0a": "no GPU & no disk_space"}),
]


def test_a_row_is_a_method_over_its_seeds_beside_what_is_published() -> None:
    table = groups_table(GROUPS, "trial")
    assert table.title == "trial: shoal:resnet18_cifar on cifar10:data"
    heads = [column.name for column in table.columns]
    easier, egp = (dict(zip(heads, texts, strict=True)) for texts in table.texts())
    assert easier == {
        "method": "easier", "removed": "8/17", "validation": "92.00 ± 1.41 %",
        "test": "91.00 ± 1.41 %", "dense": "92.00 ± 0.00 %", "published": "92.10 %",
        "dense / this": "1.50 ± 0.00 ×", "MACs": "2.00 ± 0.00 ×", "time": "1 min 30 s",
        "seeds": "2",
    }  # fmt: skip
    assert egp["test"] == "89.00 %"
    assert egp["method"] == "egp, per_step=2"
    assert "mean ± standard deviation over the seeds" in table.notes
    assert any("Quétu" in note for note in table.notes)


def test_the_best_is_bold_for_each_model_and_data() -> None:
    other = replace(GROUPS[1], data="digits")
    table = groups_table([*GROUPS, other], "trial")
    bold = [
        [cell.value for cell in row.cells if isinstance(cell, Quantity) and cell.best]
        for row in table.rows
    ]
    assert bold == [[91.0, 2.0], [1.75, 2.0], [89.0, 1.75, 2.0]]
    assert [row.last for row in table.rows] == [False, True, False]
    assert best([*GROUPS, other], "speedup") == {
        ("shoal:resnet18_cifar", "cifar10:data"): 1.75,
        ("shoal:resnet18_cifar", "digits"): 1.75,
    }


def test_a_speedup_that_is_not_to_be_trusted_is_marked_and_never_the_best() -> None:
    busy = group("shoal", [88.0], 9.0, trusted=False)
    table = groups_table([*GROUPS, busy], "trial")
    (place,) = (n for n, column in enumerate(table.columns) if column.name == "dense / this")
    found = [row.cells[place] for row in table.rows]
    assert [isinstance(cell, Quantity) and cell.best for cell in found] == [False, True, False]
    assert [str(cell).endswith("?") for cell in found] == [False, False, True]
    assert any("not to be trusted" in note for note in table.notes)
    rows = csv.DictReader(io.StringIO(groups_csv([*GROUPS, busy])))
    assert [row["trusted"] for row in rows] == ["True", "True", "False"]
    assert best([busy], "speedup") == {}


def test_a_speedup_whose_interval_holds_1_has_a_question_mark() -> None:
    table = groups_table([group("easier", [90.0], 1.02, certain=False)])
    (texts,) = table.texts()
    assert "1.02 × ?" in texts
    assert any("too close to tell" in note for note in table.notes)


def test_without_test_data_dense_and_result_are_of_validation_data_at_every_width() -> None:
    one, other = (
        replace(
            found,
            figures={
                **{k: v for k, v in found.figures.items() if "test" not in k},
                "dense_val": Spread.of([93.5]),
            },
        )
        for found in GROUPS
    )
    table = groups_table([one, other], "trial")
    heads = [column.name for column in table.columns]
    shown = dict(zip(heads, table.texts()[0], strict=True))
    assert (shown["dense"], shown["validation"]) == ("93.50 %", "92.00 ± 1.41 %")
    assert "test" not in heads
    out = io.StringIO()
    print_table(Console(file=out, width=60), table)
    assert "92.00 ± 1.41 %" in out.getvalue()


def test_every_form_marks_the_best_and_nothing_else() -> None:
    table = groups_table(GROUPS, "trial")
    assert "| **91.00 ± 1.41 %** |" in markdown(table)
    assert markdown(table).count("**") == 2 * 4
    text = latex(table)
    assert r"\textbf{91.00 $\pm$ 1.41 \%}" in text
    assert text.count(r"\textbf") == 4
    assert r"per\_step=2" in text
    assert html_table(table).count('class="right strong"') == 4
    out = io.StringIO()
    print_table(Console(file=out, width=200, force_terminal=True), table)
    assert "\x1b[1m91.00 ± 1.41 %\x1b[0m" in out.getvalue()


def test_the_csv_has_full_numbers_in_columns_of_their_own() -> None:
    easier, egp = csv.DictReader(io.StringIO(groups_csv(GROUPS)))
    assert float(easier["test"]) == 91.0
    assert float(easier["test_deviation"]) == pytest.approx(2**0.5)
    assert egp["test_deviation"] == ""
    assert (easier["seeds"], egp["missing"]) == ("0 1", "1")
    assert (easier["published"], easier["published_in"]) == ("92.1", "table5")
    assert (easier["published_change"], egp["published"], egp["published_in"]) == ("", "", "")


CKA = published.find(
    model="cifar_resnet56", data="cifar10", method="layer_pruning", removed=10,
    variant="criterion=cka",
)  # fmt: skip
KL = published.find(
    model="cifar_resnet32", data="cifar10", method="layer_pruning", removed=1,
    variant="criterion=kl&rewind=0",
)  # fmt: skip


def test_a_change_that_is_published_without_an_accuracy_is_in_every_form() -> None:
    groups = [group("layer_pruning", [90.0], 1.5, published=CKA)]
    (row,) = csv.DictReader(io.StringIO(groups_csv(groups)))
    assert (row["published"], row["published_change"], row["published_in"]) == ("", "1.25", "cka")
    assert "+1.25 points" in markdown(groups_table(groups))
    assert "?" not in markdown(groups_table(groups))


def test_a_figure_without_a_count_has_a_question_mark_and_a_note() -> None:
    table = groups_table([group("layer_pruning", [90.0], 1.5, published=KL)])
    assert "+0.74 points ?" in markdown(table)
    assert "published, ?: the paper does not say how many were removed" in table.notes


def test_twins_stand_beside_the_one_that_is_published() -> None:
    twin = published.find(
        model="resnet18_cifar", data="cifar10", method="easier", removed=8, variant="from scratch"
    )
    with_twins = GROUPS[0].figures | {  # type: ignore[operator]
        "twin_val": Spread.of([88.0, 89.0]), "twin_test": Spread.of([87.0, 89.0])
    }  # fmt: skip
    groups = [replace(GROUPS[0], figures=with_twins, published_twin=twin), GROUPS[1]]
    table = groups_table(groups)
    heads = [column.name for column in table.columns]
    one, other = (dict(zip(heads, texts, strict=True)) for texts in table.texts())
    assert (one["twin"], one["twin, published"]) == ("88.00 ± 1.41 %", "91.56 %")
    assert (other["twin"], other["twin, published"]) == ("–", "–")
    assert any("section 4.3" in note for note in table.notes)
    row, _ = csv.DictReader(io.StringIO(groups_csv(groups)))
    assert (row["twin_test"], row["published_twin"]) == ("88.0", "91.56")
    assert not {"twin", "twin, published"} & {c.name for c in groups_table(GROUPS).columns}


def test_cells_that_are_not_done_are_listed_with_the_reason() -> None:
    table = open_table(GROUPS)
    assert table is not None
    assert table.texts() == [["egp-x", "no GPU & no disk_space"]]
    assert r"no GPU \& no disk\_space" in latex(table)
    assert open_table(GROUPS[:1]) is None


def test_the_table_fits_80_columns() -> None:
    out = io.StringIO()
    print_table(Console(file=out, width=80), groups_table(GROUPS, "trial"))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "91.00 ± 1.41 %" in out.getvalue()


def test_names_are_shown_as_they_are_in_markdown() -> None:
    named = Table("a_b <i>", (Column("x", align="left"),), (Row(("m_&<b>|*50*/_x",)),))
    shown = markdown(named)
    assert shown.startswith("a_b \\<i>\n")
    assert "| m\\_&\\<b>\\|\\*50\\*/\\_x |" in shown
