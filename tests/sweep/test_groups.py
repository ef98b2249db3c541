"""Cells put together over their seeds."""

from __future__ import annotations

import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import shoal
import shoal.sweep.place as place
import shoal.sweep.run as loop
from shoal import published
from shoal.cli import main
from shoal.errors import RunError
from shoal.reproduce import find_target, plan
from shoal.sealed import sealed_text
from shoal.search.run_files import read_record
from shoal.sweep import Cell, CellState, SweepFolder, cells_of, groups_of
from shoal.sweep.groups import Spread, _published
from sweep_checks import SPEC, Copies


def state_of(cell: Cell) -> CellState:
    return CellState(cell.name, cell.given, cell.job.to_dict())


def train_twin(run: Path, **quality: float) -> None:
    """Put a copy of a run into it as its twin, with another quality."""
    twin = run / "twin"
    shutil.copytree(run, twin)
    record = read_record(twin)
    changed = replace(record, dense=replace(record.dense, **quality))  # type: ignore[arg-type]
    (twin / "result.json").write_text(sealed_text(changed.to_dict()))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(loop, "_PAUSE", 0.0)
    fate = {"layer_pruning-build-digits-seed1": ["the disk is full"]}
    monkeypatch.setattr(place, "Processes", lambda jobs: Copies(fate))
    shoal.sweep({**SPEC, "remove": [1, 2]}, out=tmp_path / "out")
    return tmp_path / "out"


def test_cells_that_differ_in_their_seed_alone_are_one_group(folder: Path) -> None:
    groups = groups_of(SweepFolder(folder))
    assert [(one.method, one.variant, one.seeds) for one in groups] == [
        ("easier", "remove=1", (0, 1)),
        ("easier", "remove=2", (0, 1)),
        ("layer_pruning", "remove=1", (0,)),
        ("layer_pruning", "remove=2", (0,)),
    ]
    assert [len(one.open) for one in groups] == [0, 0, 1, 1]
    assert set(groups[2].open.values()) == {"the disk is full"}
    record = SweepFolder(folder).record(groups[0].names[0])
    assert record is not None
    assert groups[0].figures["val"] == Spread(record.final.top1_val, 0.0, 2)
    assert groups[2].figures["removed"] == Spread(1, None, 1)


@pytest.mark.parametrize(
    ("axis", "variants"),
    [
        (
            {"method": ["easier?how=identity", "easier?how=line&per_step=2"]},
            ["how=identity", "how=line, per_step=2"],
        ),
        (
            {"method": "easier", "recipe": ["easier_cifar", "finetune"]},
            ["recipe=easier_cifar", "recipe=finetune"],
        ),
    ],
)
def test_rows_say_by_what_they_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axis: dict[str, Any], variants: list[str]
) -> None:
    monkeypatch.setattr(loop, "_PAUSE", 0.0)
    monkeypatch.setattr(place, "Processes", lambda jobs: Copies())
    shoal.sweep({**SPEC, "seed": 0, **axis}, out=tmp_path / "out")
    found = groups_of(SweepFolder(tmp_path / "out"))
    assert [(one.method, one.variant) for one in found] == [("easier", name) for name in variants]


def test_cells_of_several_calls_say_in_what_these_differed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_PAUSE", 0.0)
    monkeypatch.setattr(place, "Processes", lambda jobs: Copies())
    folder = SweepFolder(tmp_path / "out")
    for other in ({"budget": 0.5}, {"max_drop": 50.0}):
        folder.keep()
        shoal.sweep({**SPEC, "method": "easier", **other}, out=folder.path)
    variants = {one.variant for one in groups_of(folder)}
    assert variants == {"max_drop=100.0, budget=0.5", "max_drop=50.0, budget=None"}


@pytest.mark.parametrize(
    ("options", "accuracy"),
    [
        ({}, 92.10),
        ({"criterion": "entropy?zeros=on&pooling=batch"}, 92.10),  # as the paper's code has it
        ({"per_step": 2}, 92.26),  # in Table 2, and not what Table 1 has for one at a time
        ({"per_step": 3}, None),
        ({"remove": [8, 9]}, 92.10),
        ({"samples": 1000, "dense_epochs": 3}, 92.10),
        ({"rectifier": "gelu"}, None),
        ({"criterion": ["random", "entropy"]}, None),
        ({"criterion": "entropy?neurons=mixed"}, None),
        ({"how": "line"}, None),
        ({"per_latency": True}, None),
        ({"dense_epochs": 1, "rewind": 0}, None),
        ({"task": "binary"}, None),
    ],
)
def test_the_published_figure_is_that_of_the_same_variant(
    options: dict[str, Any], accuracy: float | None
) -> None:
    kind = {"model": "shoal:resnet18_cifar", "data": "cifar10:ROOT", "method": "easier"}
    (cell, *_) = cells_of({**kind, "how": "identity", **options})
    found = _published(state_of(cell), Spread(8.0, None, 1))
    assert (None if found is None else found.accuracy) == accuracy


@pytest.mark.parametrize("name", ["table1", "table2", "table5", "table9"])
@pytest.mark.parametrize("faithful", [False, True])
def test_the_runs_that_reproduce_a_table_stand_beside_what_it_prints(
    name: str, faithful: bool
) -> None:
    target = find_target(name)
    data = dict.fromkeys(one.data for one in target.make())
    made = plan(target, [f"{one}:." for one in data], faithful=faithful)
    otherwise = set()
    for wanted, (cell,) in zip(made.wanted, made.cells, strict=True):
        for printed in wanted.cells:
            if printed.method == "dense" and name == "table2":
                continue  # which has another one than the table that is believed
            found = _published(state_of(cell), Spread(printed.removed or 0, None, 1))
            assert found is not None
            if found.accuracy != printed.accuracy:
                otherwise.add((printed.model, printed.data, printed.removed))
    # Where the paper disagrees with itself, the tables of single removals are believed.
    assert otherwise == (_OTHERWISE if name == "table1" else set())


_OTHERWISE = {
    ("resnet18", "aircraft", 2),
    ("swin_t", "pacs", 0),
    ("mobilenet_v2", "pacs", 0),
}


def test_a_damaged_twin_is_a_missing_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(record: object) -> None:
        raise RunError("the twin is damaged")

    monkeypatch.setattr("shoal.sweep.groups.twin_of", damaged)
    groups = groups_of(SweepFolder(folder))
    assert groups
    assert not any("twin_test" in group.figures for group in groups)


def test_the_runs_of_the_lottery_stand_beside_what_it_prints() -> None:
    made = plan(find_target("lottery"), ["cifar10:."])
    for wanted, (cell,) in zip(made.wanted, made.cells, strict=True):
        (printed,) = wanted.cells
        found = _published(state_of(cell), Spread(printed.removed or 1, None, 1))
        assert found == (printed if printed.change is not None else None)  # of ResNet-56 none is


@pytest.mark.parametrize(
    ("options", "table"),
    [
        ({"method": "layer_pruning"}, "cka"),
        ({"method": "layer_pruning", "rewind": 0}, None),
        (
            {"method": "layer_pruning", "criterion": "grasp", "rewind": 0, "score_on": "rewound"},
            "lottery",
        ),
        ({"method": "layer_pruning", "criterion": "lesion"}, None),
        ({"method": "layer_pruning", "per_latency": True}, None),
        ({"method": "layer_pruning", "keep_first": True, "keep_per_stage": 2}, "cka"),
    ],
)
def test_the_published_figure_of_blocks_is_that_of_the_same_criterion(
    options: dict[str, Any], table: str | None
) -> None:
    spec = {"model": "shoal:cifar_resnet32", "data": "cifar10:ROOT", **options}
    (cell,) = cells_of(spec)
    state = state_of(cell)
    counts = {c.removed for name in ("cka", "lottery") for c in published.table(name)}
    found = [_published(state, Spread(n, None, 1)) for n in counts if n]
    assert {one.table for one in found if one is not None} == ({table} if table else set())


def test_twins_stand_beside_their_results_where_every_seed_has_one(folder: Path) -> None:
    """Their means are over the same seeds as those of the results, or are not shown."""
    sweep = SweepFolder(folder)
    names = groups_of(sweep)[0].names
    for name, quality in zip(names, (70.0, 74.0), strict=True):
        assert "twin_val" not in groups_of(sweep)[0].figures
        train_twin(sweep.run(name), top1_val=quality, top1_test=quality + 1)
    one, *others = groups_of(sweep)
    assert one.figures["twin_val"] == Spread.of([70.0, 74.0])
    assert one.figures["twin_test"] == Spread.of([71.0, 75.0])
    assert not any("twin_val" in other.figures for other in others)


def test_compare_shows_a_sweep_and_writes_it_in_every_form(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "layer_pruning" in shown
    assert "the disk is full" in shown
    for file in ("all.md", "all.csv", "all.tex"):
        assert main(["compare", str(folder), "--out", str(tmp_path / file)]) == 0
    assert (tmp_path / "all.md").read_text().startswith("out: ")
    assert len([*csv.DictReader(io.StringIO((tmp_path / "all.csv").read_text()))]) == 4
    assert r"\toprule" in (tmp_path / "all.tex").read_text()
    assert main(["compare", str(folder), "--format", "csv"]) == 0
    assert capsys.readouterr().out == (tmp_path / "all.csv").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "pdf"], "--format is 'pdf': give one of markdown, csv, latex"),
        (["--out", "all.pdf"], "'all.pdf' says no form"),
        (["--format", "csv", "--json"], "--json is given with --format or --out"),
        (["--out", "all.csv", "--json"], "--json is given with --format or --out"),
        (["--data", "digits"], "nothing is measured now: omit --data"),
        (["--runtime", "eager", "--batch", "2"], "omit --batch, --runtime"),
        (["--seconds", "1", "--trust"], "omit --seconds, --trust"),
    ],
)
def test_a_form_that_does_not_exist_is_one_line(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(folder), *words]) == 2
    assert message in capsys.readouterr().err


def test_the_ending_of_a_file_may_be_in_capitals(folder: Path, tmp_path: Path) -> None:
    assert main(["compare", str(folder), "--out", str(tmp_path / "ALL.CSV")]) == 0
    assert (tmp_path / "ALL.CSV").read_text().startswith("model,data,method")


def test_forms_are_of_sweeps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a", "b", "--format", "csv"]) == 2
    assert "for the folder of one sweep" in capsys.readouterr().err
