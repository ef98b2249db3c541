"""The benchmark of all methods: equal epochs for each, none left out, and a table at toy size."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from scripts import script
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
        assert 0 < spent <= epochs


@pytest.mark.slow
def test_it_writes_a_table_and_goes_on_from_what_is_there(
    program: ModuleType, tmp_path: Path
) -> None:
    given = ["--data", "digits", "--model", "shoal:digits_resnet", "--epochs", "4"]
    given += ["--sites", "3", "--blocks", "2", "--seeds", "1", "--out", str(tmp_path)]
    given += ["--train-samples", "300", "--only", "dense", "TLC", "LaCoOT", "EASIER 2"]
    program.main(given)
    first = json.loads((tmp_path / "methods.json").read_text())
    assert {len(found) for found in first.values()} == {1}
    assert first["EASIER 2×"][0]["removed"] == 3
    assert first["LaCoOT"][0]["removed"] == 2
    assert {found["epochs"] for (found,) in first.values()} == {4}
    program.main(given)
    second = json.loads((tmp_path / "methods.json").read_text())
    for found in (first, second):  # measured anew, in common rounds
        assert all(one.pop("speedup") > 0 for (one,) in found.values())
        doubts = [one.pop("doubt") for name, (one,) in found.items() if name != program.CONTROL]
        assert None not in doubts
    assert second == first
    assert "| LaCoOT | 2.0 of 5 blocks |" in (tmp_path / "methods.md").read_text()
