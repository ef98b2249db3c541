from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import RunError
from shoal.merge.report import MergeReport
from shoal.report import (
    RunRecord,
    comparison_table,
    latency_table,
    outcome_lines,
    read_run,
    runtime_notes,
    steps_table,
)
from shoal.report.markdown import markdown
from shoal.report.table import Table
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
        latency_batch=8,
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


def runtime(name: str, **milliseconds: float) -> dict[str, Any]:
    return {
        "runtime": name,
        "baseline": "dense_folded",
        "latency": {
            network: {"median_ms": ms, "batch_size": 8, "device": "cpu", "threads": 2}
            for network, ms in milliseconds.items()
        },
        "ratio": dict.fromkeys(milliseconds, RATIO) | {"dense": {**RATIO, "low": 0.9}},
        "missing": {},
    }


def test_latencies_of_both_runtimes_stand_side_by_side() -> None:
    four = {"dense": 2.0, "dense_folded": 1.8, "result": 1.5, "result_merged": 0.9}
    table = latency_table([runtime("eager", **four), runtime("onnxruntime", **four)])
    shown = text(table)
    for words in ("latency at batch 8, 2 threads", "| PyTorch |", "| ONNX Runtime |",
                  "dense as given", "dense, norms folded", "result as trained",
                  "result merged", "2.00 × (1.90 to 2.20)", "0.9 ms"):  # fmt: skip
        assert words in shown, words
    assert "not certain (0.90 to 2.20)" in shown  # dense as given: the interval holds 1


def test_a_runtime_that_is_missing_is_told_once() -> None:
    lacking = {**runtime("onnxruntime"), "ratio": {}}
    lacking["missing"] = dict.fromkeys(("dense", "dense_folded", "result", "result_merged"), "no")
    four = {"dense": 2.0, "dense_folded": 1.8, "result": 1.5, "result_merged": 0.9}
    found = [runtime("eager", **four), lacking]
    assert "ONNX" not in text(latency_table(found))
    assert runtime_notes(found) == ["no latency in ONNX Runtime: no"]
    assert latency_table([]) is None


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
