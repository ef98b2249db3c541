from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import shoal.methods  # noqa: F401  registers them
from shoal import published
from shoal.published import Cell
from shoal.report.reproduce_tables import merged_tables, reproduced_lines, reproduced_table
from shoal.reproduce import (
    Merged,
    Plan,
    Row,
    find_target,
    measure_merged,
    printed_latencies,
    rows,
)
from shoal.reproduce.targets import Wanted
from shoal.runtimes import Runner
from shoal.runtimes.eager import Eager
from shoal.runtimes.runtime import RUNTIMES
from shoal.search.records import RunRecord
from shoal.search.run_files import read_run
from shoal.sweep import SweepFolder, cells_of
from shoal.sweep.folder import CellState
from small_runs import run


def cell(removed: int, accuracy: float | None, **more: object) -> Cell:
    method = "easier" if removed else "dense"
    values = {"model": "small", "data": "digits", "method": method, "removed": removed, **more}
    return Cell(table="table5", accuracy=accuracy, **values)  # type: ignore[arg-type]


CELLS = (cell(0, 90.0), cell(2, 80.0), cell(9, 70.0))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, SweepFolder]:
    """A plan of two seeds with their runs."""
    spec = {
        "model": "shoal:digits_resnet", "data": "digits", "method": "easier", "seed": [0, 1],
    }  # fmt: skip
    cells = tuple(cells_of(spec))
    wanted = (
        Wanted("small", "digits", "easier", {"remove": 9}, CELLS),
        Wanted("small", "pacs", "easier", {"remove": 2}, (cell(2, 50.0),)),
    )
    missing = {"pacs": "get PACS.zip"}
    plan = Plan(find_target("table5"), wanted, spec, (cells, ()), missing)
    folder = SweepFolder(tmp_path_factory.mktemp("out"))
    for seed, one in enumerate(cells):
        run(folder.run(one.name), seed=seed, remove=3)
    states = [CellState(one.name, one.given, one.job.to_dict(), "done") for one in cells]
    folder.write(states)
    return plan, folder


def test_measured_figures_stand_beside_the_cells_of_as_many_removals(
    made: tuple[Plan, SweepFolder],
) -> None:
    plan, folder = made
    dense, two, nine, elsewhere = rows(plan, folder)
    records = [folder.record(one.name) for one in plan.cells[0]]
    tested = [[s.metrics.top1_test for s in r.steps] for r in records if r is not None]
    assert dense.accuracies == tuple(one[0] for one in tested)
    assert two.accuracies == tuple(one[2] for one in tested)
    assert two.changes == pytest.approx([one[2] - one[0] for one in tested])
    assert (two.removed, two.published, two.state) == (2, 80.0, "done")
    assert two.accuracy == pytest.approx(sum(two.accuracies) / 2)
    assert (nine.state, nine.accuracies) == ("not reached", ())
    assert elsewhere.state == "no data"


def test_a_row_is_done_when_all_its_runs_are_though_one_ended_with_fewer_removed(
    made: tuple[Plan, SweepFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = made
    states = folder.read()

    def read(path: Path) -> RunRecord:
        record = read_run(path)
        return replace(record, steps=record.steps[:2]) if path.name == states[1].name else record

    monkeypatch.setattr("shoal.reproduce.outcome.read_run", read)
    two = rows(plan, folder)[1]
    assert (two.removed, len(two.accuracies), two.state) == (2, 1, "done")
    (shown,) = reproduced_table(plan.target, [two]).texts()
    assert shown[-1] == f"{two.accuracy:.2f} %, 1 of 2 seeds"
    going_on = [states[0], replace(states[1], state="running")]
    monkeypatch.setattr(SweepFolder, "read", lambda _: going_on)
    assert rows(plan, folder)[1].state == "waiting"


def test_a_finished_run_that_cannot_be_read_has_failed(made: tuple[Plan, SweepFolder]) -> None:
    plan, folder = made
    spoilt = folder.run(plan.cells[0][0].name) / "best" / "network.json"
    whole = spoilt.read_text()
    spoilt.write_text("{")
    try:
        nine = rows(plan, folder)[2]
        assert nine.state == "failed"
        assert str(spoilt) in nine.why
    finally:
        spoilt.write_text(whole)


def test_dense_is_the_first_network_also_where_later_steps_remove_nothing(tmp_path: Path) -> None:
    spec = {"model": "shoal:digits_resnet", "data": "digits", "method": "egp", "rounds": 2}
    (one,) = cells_of(spec)
    folder = SweepFolder(tmp_path)
    record = run(folder.run(one.name), method="egp", rounds=2, cap=0.1)
    assert [step.removed for step in record.steps[:2]] == [0, 0]
    folder.write([CellState(one.name, one.given, one.job.to_dict(), "done")])
    wanted = Wanted("small", "digits", "egp", {"remove": 9}, CELLS[:1])
    found = rows(Plan(find_target("table1"), (wanted,), spec, ((one,),), {}), folder)
    assert [row.accuracies for row in found] == [(record.steps[0].metrics.top1_test,)]


def test_what_was_not_run_waits_and_what_failed_says_why(
    made: tuple[Plan, SweepFolder], tmp_path: Path
) -> None:
    plan, folder = made
    assert {row.state for row in rows(plan, SweepFolder(tmp_path / "new"))} == {
        "waiting", "no data",
    }  # fmt: skip
    states = folder.read()
    folder.write([])  # the last call was for other cells
    assert [row.state for row in rows(plan, folder)][:2] == ["done", "done"]
    folder.write([states[0], replace(states[1], state="failed", failed="no memory")])
    try:
        found = rows(plan, folder)
        assert [row.state for row in found] == ["failed"] * 3 + ["no data"]
        lines = reproduced_lines(plan.target, found, plan.missing)
        assert sum("small on digits, easier, failed: no memory" in line for line in lines) == 1
        assert "no data for pacs: get PACS.zip" in lines
    finally:
        folder.write(states)


def test_the_table_shows_mean_and_deviation(made: tuple[Plan, SweepFolder]) -> None:
    plan, folder = made
    found = [replace(row, accuracies=(80.0, 82.0)) for row in rows(plan, folder)[:2]]
    table = reproduced_table(plan.target, found)
    assert table.title == f"{plan.target.title}, on digits"
    assert table.texts()[1] == ["small", "easier", "2", "80.00 %", "81.00 ± 1.41 %"]
    printed = cell(2, None, change=0.4, macs_cut=20.5, training_speedup=1.35)
    found = [replace(found[1], cell=printed, changes=(-1.0,), macs_cut=20.0,
                     training_speedup=1.3, asked=1)]  # fmt: skip
    table = reproduced_table(plan.target, found)
    assert table.title == f"{plan.target.title}, on digits, by easier"
    (texts,) = table.texts()
    assert texts[2:8] == ["+0.40 points", "-1.00", "20.50 %", "20.00 %", "1.35 ×", "1.30 ×"]
    found = [replace(found[0], changes=(-2.0, 1.0))]
    assert reproduced_table(plan.target, found).texts()[0][3] == "-0.50 ± 2.12"
    other = replace(found[0], data="pacs")
    table = reproduced_table(plan.target, [*found, other])
    assert table.title == f"{plan.target.title}, by easier"
    assert [texts[0] for texts in table.texts()] == ["small, digits", "small, pacs"]


def test_the_options_of_the_lottery_are_seen_at_eighty_columns() -> None:
    target = find_target("lottery")
    found = [
        Row(c.model, c.data, c.method, c.variant, c, state="waiting")
        for c in published.table("lottery")
    ]
    (options,) = (c for c in reproduced_table(target, found).columns if c.name == "options")
    assert options.priority == 0


def test_runs_of_two_variants_fail_each_for_its_own_reason() -> None:
    found = [
        Row("small", "digits", "easier", variant, None, state="failed", why=why)
        for variant, why in (("per_step=2", "no memory"), ("per_step=3&how=line", "no space"))
    ]
    lines = reproduced_lines(find_target("table2"), found, {})
    assert "small on digits, easier, per_step=2, failed: no memory" in lines
    assert "small on digits, easier, per_step=3, how=line, failed: no space" in lines


def test_a_budget_is_said_beside_the_figures(made: tuple[Plan, SweepFolder]) -> None:
    plan, _ = made
    said = reproduced_lines(plan.target, (), {}, 0.1)
    assert said[0] == "budget 0.1: each training has this share of the published epochs"
    assert said[1:] == reproduced_lines(plan.target, (), {})


@pytest.mark.long
def test_merged_networks_are_smaller_or_not_but_the_same(
    made: tuple[Plan, SweepFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = made
    monkeypatch.setattr("shoal.reproduce.merged.installed", lambda: ["eager"])
    told: list[str] = []
    found = measure_merged(folder.run(plan.cells[0][0].name), seconds=0.01, say=told.append)
    assert isinstance(found, Merged)
    assert [size.removed for size in found.sizes] == [0, 1, 2, 3]
    assert all(size.max_rel_error < 1e-5 for size in found.sizes)
    assert found.sizes[0].macs == found.sizes[0].macs_before
    assert found.sizes[3].depth <= found.sizes[0].depth
    assert list(found.latency[0]["latency"]) == ["0", "1", "2", "3"]
    assert told[0] == "folding dense"
    sizes, timed = merged_tables(found, [cell(1, None, mflops=258.24)])
    assert sizes.texts()[1][4] == "258.24"
    assert sizes.texts()[2][4] == "–"
    assert [texts[1] for texts in timed.texts()][:2] == ["dense, folded", "1 removed, merged"]


def test_every_printed_latency_of_table_3_is_shown_with_what_it_gained() -> None:
    cells = published.table("table3")
    (table,) = merged_tables(None, cells)
    shown = table.texts()
    assert [column.name for column in table.columns] == ["device", *map(str, range(9))]
    read = {
        (device[0], removed): float(text)
        for device in shown[::2]
        for removed, text in enumerate(device[1:])
    }
    printed = {(one.device, one.removed): one.latency_ms for one in cells}
    assert len(printed) == 54
    assert read == printed
    for device, gains in zip(shown[::2], shown[1::2], strict=True):
        assert gains[0] == "  dense / this"
        for ms, gain in zip(device[1:], gains[1:], strict=True):
            assert float(gain) == pytest.approx(float(device[1]) / float(ms), abs=0.005)
    assert shown[0][1:3] == ["13.5", "9.33"]
    assert shown[1][1:3] == ["1.00", "1.45"]  # above 1 is faster
    assert merged_tables(None, published.table("table5")) == []


def test_a_printed_latency_without_a_dense_one_on_its_device_has_no_ratio() -> None:
    times = [cell(0, None, device="A", latency_ms=4.0)]
    times += [cell(2, None, device=name, latency_ms=2.0) for name in ("A", "B")]
    found = printed_latencies([*times, cell(3, 80.0)])
    assert [(one.device, one.removed, one.ratio) for one in found] == [
        ("A", 0, 1.0), ("A", 2, 2.0), ("B", 2, None),
    ]  # fmt: skip
    (table,) = merged_tables(None, times)
    assert table.texts() == [
        ["A", "4", "2"], ["  dense / this", "1.00", "2.00"],
        ["B", "–", "2"], ["  dense / this", "–", "–"],
    ]  # fmt: skip


@pytest.mark.long
def test_a_runtime_that_fails_is_a_line_under_those_that_do_not(
    made: tuple[Plan, SweepFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = made

    @dataclass(frozen=True)
    class Broken(Eager):
        name, title = "broken", "a broken one"

        def make(self, network: object, inputs: object, *, check: bool = False) -> Runner:
            raise RuntimeError("the compiler crashed")

    monkeypatch.setitem(RUNTIMES._entries, "broken", Broken)
    monkeypatch.setattr("shoal.reproduce.merged.installed", lambda: ["broken", "eager"])
    run = folder.run(plan.cells[0][0].name)
    sizes, timed = merged_tables(measure_merged(run, seconds=0.01), [])
    assert {texts[0] for texts in timed.texts()} == {"PyTorch", ""}
    (line,) = (note for note in timed.notes if "broken" in note)
    assert line.startswith("no latency in a broken one: RuntimeError: the compiler crashed")
    monkeypatch.setattr("shoal.reproduce.merged.installed", lambda: ["broken"])
    (sizes,) = merged_tables(measure_merged(run, seconds=0.01), [])
    assert any("the compiler crashed" in note for note in sizes.notes)
