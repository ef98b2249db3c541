from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shoal.errors import RunError
from shoal.merge.report import MergeReport
from shoal.report import (
    RunRecord,
    comparison_table,
    latency_table,
    outcome_lines,
    read_run,
    runtime_notes,
    runtimes_table,
    steps_table,
)
from shoal.report.markdown import markdown
from shoal.report.run_tables import headline
from shoal.report.table import Table
from shoal.report.terminal import print_table
from shoal.search.records import LatencyReport, Metrics, Step

LATENCY = LatencyReport(
    batch=8,
    runtime="eager",
    dense_ms=2.0,
    dense_folded_ms=1.8,
    result_ms=2.0,
    result_merged_ms=0.9,
    speedup={"median": 2.0, "low": 1.9, "high": 2.2},
    runtimes=(),
    merge_max_rel_error=0.0,
    merged_depth=5,
    merged_macs=2_000_000,
    merged_params=1_000,
)
MERGE = MergeReport([], [], [], 0.0, None, 2, 10, 10, 5, 5, None, None, 8)
DENSE = Metrics(90.0, 88.0, 4_000_000, 2_000, 10, 2.0)


def step(number: int, **changes: Any) -> Step:
    base = Step(
        step=number,
        operation="linearize" if number else "dense",
        names=(f"site{number}",) if number else (),
        metrics=DENSE,
        sites_left=3 - number,
        scores={"site1": 0.1, "site2": 0.2, "site3": 0.3} if number else {},
        settled=True,
        top1_val_before=50.0 if number else None,
        epochs=1,
        seconds=1.5,
        latency_ratio=1.0,
        latency_ratio_low=0.9,
        latency_ratio_high=1.1,
        within=True,
    )
    return replace(base, **changes)


def record(*steps: Step, **changes: Any) -> RunRecord:
    last = max((s for s in steps if s.within), key=lambda s: s.step)
    base = RunRecord(
        folder=Path("run"),
        dense=DENSE,
        final=last.metrics,
        steps=steps,
        removed=sum(len(s.names) for s in steps[: last.step + 1]),
        total=3,
        unit="rectifiers",
        stopped="it was enough",
        notes=("a note",),
        latency=LATENCY,
        merge=MERGE,
        latency_batch=(8,),
    )
    return replace(base, **changes)


def text(table: Table | None) -> str:
    assert table is not None
    return markdown(table)


def test_a_difference_that_was_not_measurable_is_not_claimed() -> None:
    going_on = {"latency": None, "stopped": ""}
    unsure = step(1, latency_ratio=3.9, latency_ratio_low=0.3, latency_ratio_high=7.6)
    shown = text(comparison_table(record(step(0), unsure, **going_on)))
    assert "not certain (0.30 to 7.60)" in shown
    assert "3.9" not in shown
    sure = step(1, latency_ratio=1.5, latency_ratio_low=1.4, latency_ratio_high=1.6)
    shown = text(comparison_table(record(step(0), sure, **going_on)))
    assert "1.50 × (1.40 to 1.60)" in shown
    assert "the change of latency is of both networks merged" in shown


def test_a_speed_up_is_against_dense_with_its_norms_folded() -> None:
    quick = step(1, latency_ratio=9.9, latency_ratio_low=9.0, latency_ratio_high=11.0)
    shown = text(comparison_table(record(step(0), quick)))
    assert "2.00 × (1.90 to 2.20)" in shown  # of 1.8 ms, folded, over 0.9 ms, merged
    assert "1.8 ms" in shown
    assert "9.9" not in shown


RATIO = {"median": 2.0, "q1": 1.95, "q3": 2.1, "low": 1.9, "high": 2.2}


BUSY = "the machine was busy: other programs took 50 % of the processor time it needed"
DOUBTFUL = RATIO | {"trusted": False, "doubt": BUSY}


def test_what_is_not_to_be_trusted_says_so_wherever_it_is_shown() -> None:
    doubtful = {"ratio": dict.fromkeys(TWO, DOUBTFUL)}
    entries = (runtime("eager", 8, **FOUR), runtime("other", 8, **TWO) | doubtful)
    marked = record(
        step(0), step(1, latency_doubt=BUSY),
        latency=replace(LATENCY, runtimes=entries, speedup=DOUBTFUL),
    )  # fmt: skip
    cell, note = "2.00 ×, not to be trusted", f"not to be trusted: {BUSY}"
    assert cell in headline(marked)
    end = marked.latency
    assert end is not None
    for shown in (text(comparison_table(marked)), text(runtimes_table(end))):
        assert cell in shown
        assert shown.count(note) == 1
    assert "2.00 × (1.90 to 2.20)" in text(runtimes_table(end))  # where it was calm
    assert "1.90" not in text(comparison_table(marked))
    names = {"dense_folded": "a", "result_merged": "b"}
    assert note in text(latency_table([entries[1]], names))
    unsure = step(1, latency_ratio_low=1.0001, latency_doubt=BUSY)
    going_on = record(step(0), unsure, latency=None, stopped="")
    assert note in text(comparison_table(going_on))
    assert "1.00 × ?" in steps_table(going_on).texts()[1]


def test_steps_of_a_record_without_the_mark_are_trusted() -> None:
    written = step(1, latency_ratio_low=1.2, latency_ratio=1.3, latency_ratio_high=1.4).to_dict()
    del written["latency_doubt"]
    assert Step.from_dict(written).faster
    assert Step.from_dict(written | {"latency_doubt": BUSY}).faster is None


def runtime(name: str, batch: int | None = None, **milliseconds: float) -> dict[str, Any]:
    """An entry of `LatencyReport.runtimes`; without a batch size, as early versions wrote it."""
    size = 8 if batch is None else batch
    return {
        "runtime": name,
        "baseline": "dense_folded",
        "latency": {
            network: {"median_ms": ms, "batch_size": size, "device": "cpu", "threads": 2}
            for network, ms in milliseconds.items()
        },
        "ratio": dict.fromkeys(milliseconds, RATIO),
        "missing": {},
    } | ({} if batch is None else {"batch": batch, "decides": batch == 8})


FOUR = {"dense": 2.0, "dense_folded": 1.8, "result": 1.5, "result_merged": 0.9}
TWO = {"dense_folded": 18.0, "result_merged": 9.0}


def test_dense_against_result_in_each_runtime_at_each_batch_size() -> None:
    entries = (runtime("eager", 1, **TWO), runtime("eager", 8, **FOUR), runtime("other", 1, **TWO))
    table = runtimes_table(replace(LATENCY, runtimes=entries))
    assert table is not None
    assert table.title == "latency, 2 threads"
    assert table.texts() == [
        ["PyTorch", "1", "18 ms", "9 ms", "2.00 × (1.90 to 2.20)"],
        ["", "8", "1.8 ms", "0.9 ms", "2.00 × (1.90 to 2.20)"],
        ["other", "1", "18 ms", "9 ms", "2.00 × (1.90 to 2.20)"],
    ]
    assert [row.tone for row in table.rows] == ["", "strong", ""]
    assert [row.last for row in table.rows] == [False, True, True]
    assert "the search decided by latency in PyTorch at batch 8" in table.notes


def test_runtimes_of_one_row_each_are_not_set_apart() -> None:
    entries = tuple(runtime(name, 1, **TWO) for name in ("eager", "other"))
    table = runtimes_table(replace(LATENCY, runtimes=entries))
    assert table is not None
    assert not any(row.last for row in table.rows)


def test_parameters_merged_are_against_dense_with_its_norms_folded() -> None:
    folded = replace(LATENCY, dense_folded_params=1_900)
    assert "| parameters, merged | 1.9 k | 1 k | 1.90 × |" in text(
        comparison_table(record(step(0), step(1), latency=folded))
    )
    assert "| parameters, merged | 2 k | 1 k | 2.00 × |" in text(
        comparison_table(record(step(0), step(1)))  # of an earlier version, which did not count it
    )


def test_latencies_of_a_run_of_an_earlier_version_are_shown() -> None:
    old = replace(LATENCY, runtimes=(runtime("eager", **FOUR), runtime("onnxruntime", **FOUR)))
    shown = text(runtimes_table(old))
    for words in ("| PyTorch | 8 | 1.8 ms | 0.9 ms |", "| ONNX Runtime | 8 |"):
        assert words in shown, words
    assert "the search decided by latency in PyTorch at batch 8" in shown
    assert runtimes_table(LATENCY) is None


def test_the_largest_table_of_runtimes_fits_80_columns() -> None:
    slow = {"dense_folded": 1234.5, "result_merged": 1123.4}
    places = [(name, batch) for name in ("eager", "onnxruntime") for batch in (1, 32, 256)]
    entries = tuple(runtime(name, batch, **slow) for name, batch in places)
    table = runtimes_table(replace(LATENCY, runtimes=entries))
    assert table is not None
    console = Console(file=io.StringIO(), width=80)
    print_table(console, table)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("left out" in line for line in lines)


def test_networks_side_by_side_have_a_row_each() -> None:
    names = {"dense_folded": "a net", "result_merged": "b|b"}
    shown = text(latency_table([runtime("eager", 8, **TWO)], names))
    for words in ("latency at batch 8, 2 threads", "| PyTorch | a net | 18 ms | 1 |", "b\\|b"):
        assert words in shown, words
    assert latency_table([], names) is None


def test_a_runtime_that_is_missing_is_told_once() -> None:
    lacking = {"runtime": "onnxruntime", "latency": {}, "ratio": {}}
    gone = [lacking | {"batch": size, "missing": dict.fromkeys(FOUR, "no")} for size in (1, 8)]
    assert runtime_notes([runtime("eager", 8, **FOUR), *gone]) == ["no latency in ONNX Runtime: no"]
    late = lacking | {"batch": 8, "missing": dict.fromkeys(TWO, "late")}
    assert runtime_notes([runtime("onnxruntime", 1, **TWO), late]) == [
        "no latency in ONNX Runtime at batch 8: late"
    ]
    one = runtime("eager", 8, **TWO) | {"missing": {"dense": "odd"}}
    assert runtime_notes([one]) == ["no latency of dense as given in PyTorch: odd"]


def test_the_table_shows_dense_result_and_change() -> None:
    final = Metrics(89.5, None, 1_000_000, 1_000, 5, 1.0)
    table = text(comparison_table(record(step(0), step(1, metrics=final))))
    for words in ("90.00 %", "89.50 %", "-0.50 points", "4.00 ×", "2.00 ×", "1 removed", "batch 8"):
        assert words in table
    assert "2.00 × (1.90 to 2.20)" in table  # merged, from the rounds of the end
    unfinished = text(comparison_table(record(step(0), step(1), latency=None, stopped="")))
    assert "depth, merged" not in unfinished
    assert "best so far" in unfinished
    lines = outcome_lines(record(step(0), step(1)))
    assert lines[0] == "linearized: site1"
    assert lines[1] == "ended because: it was enough"
    assert lines[-1] == "note: a note"


def test_what_was_done_to_what_is_said() -> None:
    done = record(
        step(0),
        step(1, operation="collapse", names=("layer2.0",), scores={"collapse layer2.0": 0.25}),
        step(2, operation="drop", names=("layer1.1",), scores={"layer1.1": 0.5}),
        step(3, operation="collapse", names=("layer3.1",)),
    )
    assert outcome_lines(done)[:2] == ["collapsed: layer2.0, layer3.1", "dropped: layer1.1"]
    shown = text(steps_table(done))
    for words in ("collapsed layer2.0", "dropped layer1.1", "0.2500", "0.5000"):
        assert words in shown, words
    assert outcome_lines(record(step(0)))[0] == "removed: nothing"


def test_steps_past_the_result_are_not_its_removals() -> None:
    low = replace(DENSE, top1_val=50.0)
    past = record(step(0), step(1), step(2, metrics=low, within=False))
    assert outcome_lines(past)[0] == "linearized: site1"
    table = text(steps_table(past))
    assert "too low" in table
    assert "result" in table
    assert "MACs" not in table  # never changed


def test_what_changes_has_a_column() -> None:
    smaller = replace(DENSE, macs=1_000)
    assert "MACs" in text(steps_table(record(step(0), step(1, metrics=smaller))))


def test_names_are_not_taken_for_markup() -> None:
    named = step(1, names=("blocks[0].act",))
    assert "blocks[0].act" in text(steps_table(record(step(0), named)))


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = record(step(0), step(1), folder=tmp_path)
    (tmp_path / "result.json").write_text(json.dumps(written.to_dict()))
    assert read_run(tmp_path) == written


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"dense": 3}'])
def test_a_damaged_result_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(RunError, match=r"result\.json.* damaged"):
        read_run(tmp_path)


def test_a_run_without_a_step_has_nothing_to_show(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text("{}")
    with pytest.raises(RunError, match="no finished step yet"):
        read_run(tmp_path)


def test_what_is_left_is_counted_in_the_unit_of_the_method() -> None:
    done = record(step(0), step(1), total=5, removed=2)
    for unit in ("rectifiers", "blocks"):
        line = next(
            line for line in text(comparison_table(replace(done, unit=unit))).splitlines()
            if f"{unit} left" in line
        )  # fmt: skip
        assert line.split("left")[1].split()[:6] == ["|", "5", "|", "3", "|", "2"]
