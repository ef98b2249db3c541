"""A result that is not faster ends with what to try."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from shoal.cli.params import as_flags
from shoal.options import at_budget
from shoal.search.advice import advice
from shoal.search.options import MachineOptions, SearchOptions
from shoal.search.records import Result, RunRecord
from small_runs import FakeGauge, digits, run


def past_the_drop(**options: Any) -> Result:
    quality = {4: 90.0, 3: 80.0}
    gauge = FakeGauge(digits().val, quality=lambda network: quality[network.sites_left])
    return run(max_drop=1.0, gauge=gauge, **options)


@pytest.fixture(scope="module")
def ended() -> RunRecord:
    return past_the_drop(epochs=0)


def test_a_result_that_is_not_faster_says_what_to_try() -> None:
    (note,) = past_the_drop().notes
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
        ("'runs/lr=0.1' is a folder", "'runs/lr=0.1' is a folder"),
        ("'exp-seed=3' is missing", "'exp-seed=3' is missing"),
        ("'max_drop=2.yaml' is missing", "'max_drop=2.yaml' is missing"),
    ],
)
def test_the_command_line_names_flags(said: str, shown: str) -> None:
    assert as_flags(said) == shown


@pytest.mark.parametrize(
    ("asked", "budget", "told"),
    [(1, None, 2), (0, None, 2), (3, 1.0, 6), (10, 0.2, 20), (0, 0.5, 2)],
)
def test_epochs_are_advised_as_the_user_gives_them(
    ended: RunRecord, asked: int, budget: float | None, told: int
) -> None:
    options = SearchOptions(epochs=asked, budget=budget, final_epochs=1)
    (note,) = advice(ended, "shoal", at_budget(options, budget or 1.0), MachineOptions())
    assert f"epochs={told}" in re.split("; | ", note)


@pytest.mark.parametrize("budget", [0.07, 0.3, 0.9])
def test_what_is_advised_trains_twice_as_long(ended: RunRecord, budget: float) -> None:
    for asked in range(1, 30):
        options = SearchOptions(epochs=asked, budget=budget, final_epochs=1)
        now = at_budget(options, budget)
        (note,) = advice(ended, "shoal", now, MachineOptions())
        told = next(int(word[7:]) for word in re.split("; | ", note) if word.startswith("epochs="))
        assert told > asked
        assert at_budget(replace(options, epochs=told), budget).epochs >= 2 * now.epochs


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
