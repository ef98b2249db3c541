"""A run's result in int8, in tables."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from test_run_tables import LATENCY, RATIO, record, runtime, step

from shoal.report import RunRecord, outcome_tables
from shoal.report.int8_tables import int8_lines, int8_tables
from shoal.report.terminal import print_table
from shoal.search.records import Int8

FOUR = {"dense_folded": 4.0, "result_merged": 2.0, "dense_int8": 3.0, "result_int8": 1.0}


def quantized(name: str, top1_test: float | None = 87.5) -> Int8:
    return Int8(
        runtime=name, file=f"{name}.x", bytes=1000, samples=300, agreement=98.25, top1_val=89.75,
        top1_test=top1_test,
    )  # fmt: skip


def run(*names: str, batches: tuple[int, ...] = (1,), **times: float) -> RunRecord:
    entries: tuple[dict[str, Any], ...] = tuple(
        runtime(name, batch, **(times or FOUR)) for name in names for batch in batches
    )
    latency = replace(LATENCY, runtimes=entries)
    return record(step(0), step(1), latency=latency, int8=tuple(map(quantized, names)))


def test_accuracy_in_points_and_each_factor_by_runtime_and_batch() -> None:
    accuracy, latency = int8_tables(run("onnxruntime"))
    assert accuracy.texts() == [
        ["float", "90.00 %", "–", "88.00 %", "–", "–", "–"],
        [
            "int8, ONNX Runtime",
            "89.75 %",
            "-0.25 points",
            "87.50 %",
            "-0.50 points",
            "98.2 %",
            "1 k",
        ],
    ]
    ratio = "2.00 × (1.90 to 2.20)"
    assert latency.texts() == [
        ["ONNX Runtime", "1", "dense", "4 ms", "1.00 ×"],
        ["", "", "result", "2 ms", ratio],
        ["", "", "dense, int8", "3 ms", ratio],
        ["", "", "result, int8", "1 ms", ratio],
    ]


def test_all_runtimes_and_batches_fit_80_columns() -> None:
    slow = dict.fromkeys(FOUR, 1234.5)
    found = run("onnxruntime", "openvino", "tensorrt", batches=(1, 32, 256), **slow)
    console = Console(file=io.StringIO(), width=80)
    for table in outcome_tables(found):
        print_table(console, table)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("result, int8" in line for line in lines) == 9


def test_without_int8_there_is_nothing_to_show() -> None:
    assert int8_tables(record(step(0))) == int8_tables(replace(run(), int8=())) == []
    assert int8_lines(record(step(0))) == []


def test_lines_say_where_the_files_are_and_where_int8_is_slower() -> None:
    found = replace(run("onnxruntime", "openvino"), folder=Path("run"))
    assert int8_lines(found) == [
        "in int8, it is in 'run/int8/onnxruntime.x' for ONNX Runtime and in "
        "'run/int8/openvino.x' for OpenVINO"
    ]
    assert found.latency is not None
    slow = {"median": 1.0, "low": 0.9, "high": 1.1}
    (one, _) = found.latency.runtimes
    slower = {**one, "ratio": {**dict.fromkeys(FOUR, RATIO), "result_int8": slow}}
    latency = replace(found.latency, runtimes=(slower,))
    assert int8_lines(replace(found, latency=latency))[1] == (
        "note: in int8 it is slower than in float in ONNX Runtime at batch 1"
    )
