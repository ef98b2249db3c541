"""Where a result is slower than dense: the first lines of a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_run_tables import LATENCY, record, step

from shoal.cli.report import show_run
from shoal.report import RunRecord, slower_lines, write_page
from shoal.search.figures import is_slower

FAST = {"median": 1.5, "low": 1.4, "high": 1.6}
SLOW = {"median": 0.9, "low": 0.88, "high": 0.92}


def entry(runtime: str, batch: int, decides: bool = False, **ratios: Any) -> dict[str, Any]:
    """An entry of `LatencyReport.runtimes`."""
    names = ("dense_folded", *ratios)
    latency = {"median_ms": 1.0, "batch_size": batch, "device": "cpu", "threads": 1}
    return {
        "runtime": runtime,
        "batch": batch,
        "decides": decides,
        "baseline": "dense_folded",
        "latency": dict.fromkeys(names, latency),
        "ratio": ratios,
        "missing": {},
    }


def run(*entries: dict[str, Any], folder: Path = Path("run")) -> RunRecord:
    return record(step(0), step(1), latency=replace(LATENCY, runtimes=entries), folder=folder)


@pytest.mark.parametrize(
    ("median", "high", "slower"),
    [(0.9, 0.95, True), (0.975, 0.99, True), (0.985, 0.99, False), (0.9, 1.01, False)],
)
def test_slower_is_certain_and_by_more_than_two_percent(
    median: float, high: float, slower: bool
) -> None:
    ratio = {"median": median, "low": 0.8, "high": high}
    assert is_slower(ratio) is slower
    assert is_slower(ratio | {"trusted": True}) is slower
    assert not is_slower(ratio | {"trusted": False})


def test_nothing_is_said_of_a_result_that_is_faster() -> None:
    assert slower_lines(run(entry("eager", 1, True, result_merged=FAST))) == []
    assert slower_lines(record(step(0), latency=None)) == []


def test_where_the_search_did_not_decide_it_is_to_decide() -> None:
    found = run(
        entry("eager", 1, True, result_merged=FAST),
        entry("onnxruntime", 32, result_merged=SLOW, result_folded=SLOW),
    )
    assert slower_lines(found) == [
        "slower than dense in ONNX Runtime at batch 32: dense / result 0.90 × (0.88 to 0.92)",
        "the search did not decide there: to deploy there, give its command again with --runtime "
        "eager,onnxruntime --latency-batch 1,32 and another --out",
    ]


def test_where_merging_is_to_blame_it_is_merged_for_there() -> None:
    fast = entry("eager", 1, True, result_merged=FAST)
    slow = entry("onnxruntime", 32, result_merged=SLOW, result_folded=FAST)
    _, advice = slower_lines(run(fast, slow))
    assert "shoal export run --runtime onnxruntime --batch 32" in advice
    assert "(1.50 × (1.40 to 1.60) without it)" in advice


def test_where_the_search_decided_dense_is_to_be_used() -> None:
    _, advice = slower_lines(run(entry("eager", 1, True, result_merged=SLOW)))
    assert "shoal export run --step 0" in advice


def test_it_stands_before_everything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(entry("eager", 1, True, result_merged=SLOW), folder=tmp_path)
    monkeypatch.setattr("shoal.report.read_run", lambda folder: found)
    show_run(tmp_path)
    assert capsys.readouterr().out.startswith("slower than dense in PyTorch at batch 1")
    page = write_page(found).read_text(encoding="utf-8")
    assert page.index("slower than dense in PyTorch") < page.index("<h2>")
