"""A sweep's page: all methods on one front, the table, what failed and why; and in Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import BROWSER, assert_all_can_be_read
from test_group_tables import GROUPS, group
from test_page import read
from test_sweep_progress import CELLS, WHY

import shoal.report.sweep_chart as sweep_chart
import shoal.report.sweep_page as page
from shoal.report.sweep_chart import _front, group_chart
from shoal.report.sweep_page import _figures, write_sweep_page
from shoal.sweep import SweepFolder


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = SweepFolder(tmp_path / "trial")
    held = folder.lock()
    assert held is not None
    held.close()
    folder.write(CELLS)
    (folder.run(CELLS[0].name)).mkdir(parents=True)
    (folder.run(CELLS[0].name) / "report.html").write_text("a run")
    others = [
        group("layer_pruning", [88.0, 89.0], 2.0, data="digits"),
        group("shoal", [93.0, 91.0], 1.2, data="digits", trusted=False),
    ]
    monkeypatch.setattr(page, "groups_of", lambda folder: [*GROUPS, *others])
    monkeypatch.setattr(SweepFolder, "read", lambda folder: CELLS)  # there are no runs
    return write_sweep_page(folder)


def test_the_page_says_which_runs_are_done_what_is_best_and_what_failed(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert written == written.parent / "report.html"
    assert "of 4 runs, 1 done, 1 failed, 1 running, 1 waiting" in text
    assert "1 of 4 runs failed" in text
    assert "91.00 ± 1.41 %<small>easier</small>" in text
    assert "1.75 ×<small>egp, per_step=2</small>" in text
    assert text.count('aria-label="quality against latency and MACs"') == 2
    found = read(written)
    assert found.fetched == []
    assert "by method" in " ".join(found.heads)
    assert ["egp-x", "no GPU & no disk_space"] in found.rows
    assert f'href="cells/{CELLS[0].name}/report.html"' in text
    assert WHY not in text  # the groups tell it, which are others here


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = [(0.5, 90.0), (0.6, 90.0), (0.7, 92.0), (0.4, 80.0), (0.9, 91.0)]
    assert _front(points) == [(0.4, 80.0), (0.5, 90.0), (0.7, 92.0)]


def test_the_fastest_is_one_whose_latency_is_to_be_trusted() -> None:
    busy = group("shoal", [93.0], 9.0, trusted=False)
    cards = {title: (value, whose) for title, value, whose in _figures([*GROUPS, busy])}
    assert cards["fastest"] == ("1.75 ×", "egp, per_step=2")
    assert "fastest" not in [title for title, *_ in _figures([busy])]
    close = group("shoal", [93.0], 1.02, certain=False)
    assert ("fastest", "1.02 × ?", "shoal") in _figures([close])


def test_what_is_not_to_be_trusted_is_not_on_the_front(monkeypatch: pytest.MonkeyPatch) -> None:
    fronts: list[list[tuple[float, float]]] = []
    monkeypatch.setattr(sweep_chart, "_front", lambda points: fronts.append(points) or points)
    assert group_chart([*GROUPS, group("shoal", [93.0], 4.0, trusted=False)])
    by_latency, by_work = fronts
    assert [quality for _, quality in by_latency] == [91.0, 89.0]
    assert [quality for _, quality in by_work] == [91.0, 89.0, 93.0]


def test_dollar_signs_and_tags_in_names_are_text() -> None:
    chart = group_chart([group(r"$\wrong$<b>", [90.0], 1.5)])
    assert r"$\wrong$&lt;b&gt;" in chart


def test_without_a_finished_run_there_is_no_chart() -> None:
    assert group_chart([group("easier", [90.0], 1.0, figures={})]) == ""


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_nothing_is_cut_off_and_all_can_be_read(written: Path, width: int, scheme: str) -> None:
    assert_all_can_be_read(written, width, scheme)
