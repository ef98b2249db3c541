"""`shoal recipes` lists all recipes, and shows each value of one."""

from __future__ import annotations

import json

import pytest

from shoal.cli import main
from shoal.options import Recipe, options_of, published_recipes, recipes
from shoal.report.recipe_tables import published_table, recipe_table, recipes_table


def test_all_recipes_are_listed_with_what_they_change(capsys: pytest.CaptureFixture[str]) -> None:
    rows = dict(recipes_table(recipes).texts())
    assert list(rows) == recipes.names()
    assert rows["distill"] == "lr 0.005, distill 0.7"
    assert rows["finetune"].startswith("nothing")
    assert "milestones 0.5,0.75" in rows["easier_cifar"]
    assert main(["recipes", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    named = {name: printed.pop(name) for name in recipes.names()}
    assert {name: Recipe.from_dict(values) for name, values in named.items()} == {
        name: recipes[name] for name in recipes.names()
    }
    assert printed == {name: row.values() for name, row in published_recipes().items()}


def test_each_value_of_a_recipe_is_shown_with_its_unit(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {name: (value, meaning) for name, value, meaning in recipe_table(
        "vit", recipes["vit"]).texts()}  # fmt: skip
    assert list(rows) == [known.name for known in options_of(Recipe)]
    assert rows["warmup_epochs"][0] == "0.5 epochs"
    assert rows["early_stop"][0] == "never"
    assert rows["nesterov"][0] == "yes"
    assert rows["milestones"][0] == "none"
    assert all(meaning for _, meaning in rows.values())
    assert main(["recipes", "vit"]) == 0
    assert "warmup_epochs" in capsys.readouterr().out
    assert main(["recipes", "vitt"]) == 2
    assert "did you mean 'vit'" in capsys.readouterr().err


def test_a_published_recipe_is_shown_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "easier_vgg16_cifar10"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Quétu et al. 2024, Table 4" in shown
    assert "160 epochs, batches of 128" in shown
    row = published_table([published_recipes()["easier_vgg16_cifar10"]]).texts()[0]
    assert row[:7] == [
        "easier_vgg16_cifar10", "160", "128", "sgd", "0.01", "0.0001", "0.1 at 80, 0.1 at 120",
    ]  # fmt: skip
