"""A result that is not faster ends with what to try."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoal.cli.params import as_flags
from shoal.search.advice import advice
from shoal.search.options import MachineOptions, SearchOptions
from shoal.search.records import RunRecord
from small_runs import FakeGauge, digits, run


def test_a_result_that_is_not_faster_says_what_to_try() -> None:
    quality = {4: 90.0, 3: 80.0}
    gauge = FakeGauge(digits().val, quality=lambda network: quality[network.sites_left])
    result = run(max_drop=1.0, gauge=gauge)
    (note,) = result.notes
    assert note.startswith("the result is not faster than the dense network: try method='shoal'")
    assert "max_drop=2; final_epochs=10, which" in note
    assert "runtime='onnxruntime'" in note
    flags = as_flags(note)
    assert "--method shoal, which" in flags
    assert "--max-drop 2; --final-epochs 10, which" in flags
    assert "--runtime onnxruntime if" in flags


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("try dense_epochs=20", "try --dense-epochs 20"),
        ("download=True fetches them", "--download fetches them"),
        ("leave out task='segment'", "leave out --task segment"),
        (
            "other options: max_drop was 1.0 and is 0.5",
            "other options: --max-drop was 1.0 and is 0.5",
        ),
        ("in folder:photos?side=64", "in folder:photos?side=64"),
        ("broken files (skip_broken=True)", "broken files (--skip-broken)"),
        ("at m.py:3 `x.sum(dim=2)`", "at m.py:3 `x.sum(dim=2)`"),
        ("there=Truest", "there=Truest"),
    ],
)
def test_the_command_line_names_flags(said: str, shown: str) -> None:
    assert as_flags(said) == shown


def test_what_would_change_nothing_is_not_advised() -> None:
    record: RunRecord = run()  # until nothing is left
    assert record.latency is not None
    here = MachineOptions(runtime="onnxruntime")
    (note,) = advice(record, "shoal", SearchOptions(), here)
    assert not {"max_drop", "method"} & set(note.replace("=", " ").split())
    assert "latency_batch" in note
    faster = {"median": 1.1, "low": 1.05, "high": 1.2}
    known = replace(record, latency=replace(record.latency, speedup=faster))
    assert advice(known, "easier", SearchOptions(), MachineOptions()) == ()
