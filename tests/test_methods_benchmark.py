"""The benchmark of all methods: equal epochs for each, none left out, and a table at toy size."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

from scripts import TOP, script
from shoal.search.method import methods


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return script("benchmarks/methods.py")


def test_every_method_of_the_package_takes_part(program: ModuleType) -> None:
    own = [n for n in methods.names() if methods[n].__module__.startswith("shoal.methods.")]
    assert {chosen["method"] for chosen in program.systems(16, 8, 4).values()} == set(own)


@pytest.mark.parametrize(("epochs", "sites", "blocks"), [(16, 8, 4), (20, 8, 4), (5, 4, 3)])
def test_none_trains_longer(program: ModuleType, epochs: int, sites: int, blocks: int) -> None:
    for chosen in program.systems(epochs, sites, blocks).values():
        count = chosen.get("remove", 1)
        steps = chosen.get("rounds", -(-count // chosen.get("per_step", 1)))
        once = chosen["method"] == "lacoot"
        spent = chosen["epochs"] * (1 if once else steps)
        spent += sum(chosen.get(key, 0) for key in ("slope_epochs", "search_epochs"))
        spent += chosen.get("tune_epochs", 0) * steps
        assert 0 < spent <= epochs


def test_what_is_known_of_others_stays(program: ModuleType, tmp_path: Path) -> None:
    rows = {"shoal": {0: {"change": 1.0}, 2: {"change": 2.0}}, "EGP": {1: {"change": 3.0}}}
    (tmp_path / "methods.json").write_text(json.dumps(rows))
    work = [("shoal", 2), ("EGP", 0)]
    found = program.read(Namespace(out=tmp_path), work)
    assert found == {"shoal": {0: {"change": 1.0}}, "EGP": {1: {"change": 3.0}}}
    assert program.read(Namespace(out=tmp_path / "new"), work) == {}


@pytest.mark.slow
def test_it_writes_a_table_and_goes_on_from_what_is_there(
    program: ModuleType, tmp_path: Path
) -> None:
    given = ["--data", "digits", "--model", "shoal:digits_resnet", "--epochs", "4"]
    given += ["--sites", "3", "--blocks", "2", "--seeds", "0", "--out", str(tmp_path)]
    given += ["--train-samples", "300", "--only", "dense", "TLC", "LaCoOT", "EASIER 2"]
    two = [sys.executable, "benchmarks/methods.py", *given, "--jobs", "2"]
    subprocess.run(two, cwd=TOP, check=True)
    first = json.loads((tmp_path / "methods.json").read_text())
    assert {tuple(found) for found in first.values()} == {("0",)}
    assert first["EASIER 2×"]["0"]["removed"] == 3
    assert first["LaCoOT, as published"]["0"]["removed"] == 2
    assert {found["0"]["epochs"] for found in first.values()} == {4}
    program.main(given)
    second = json.loads((tmp_path / "methods.json").read_text())
    for found in (first, second):  # measured anew, in common rounds
        assert all(one["0"].pop("speedup") > 0 for one in found.values())
        doubts = [one["0"].pop("doubt") for name, one in found.items() if name != program.CONTROL]
        assert None not in doubts
    assert second == first
    assert "| LaCoOT | 2.0 of 5 blocks |" in (tmp_path / "methods.md").read_text()
