from __future__ import annotations

import json

import pytest

from shoal.errors import ConfigError, NameNotFoundError
from shoal.training import Recipe, find_recipe, recipes


@pytest.mark.parametrize("name", recipes.names())
def test_every_named_recipe_survives_json(name: str) -> None:
    recipe = recipes[name]
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_the_papers_recipes_are_those_of_table_4() -> None:
    cifar, domains, transfer = (recipes[f"easier_{n}"] for n in ("cifar", "domainbed", "transfer"))
    assert (cifar.optimizer, cifar.lr, cifar.momentum, cifar.weight_decay) == (
        "sgd",
        0.1,
        0.9,
        1e-4,
    )
    assert [round(m * 160) for m in cifar.milestones] == [80, 120]
    assert (domains.lr, domains.weight_decay) == (1e-3, 5e-4)
    assert [round(m * 30) for m in domains.milestones] == [24]
    assert (transfer.optimizer, transfer.lr, transfer.weight_decay) == ("adam", 1e-4, 0.0)
    assert cifar.gamma == domains.gamma == 0.1


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "lion"},
        {"schedule": "linear"},
        {"precision": "int8"},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr": "0.1"},
        {"lr": True},
        {"momentum": 1.0},
        {"momentum": 0.0},
        {"weight_decay": -1e-4},
        {"warmup_epochs": -1},
        {"label_smoothing": 1.0},
        {"clip_norm": 0.0},
        {"accumulate": 0},
        {"accumulate": 1.5},
        {"distill": 1.1},
        {"temperature": 0},
        {"early_stop": 0},
        {"schedule": "step"},
        {"schedule": "step", "milestones": [80, 120]},
        {"milestones": 0.5},
    ],
)
def test_values_without_sense_are_refused_in_one_line(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe(**values)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert list(values)[-1] in str(caught.value) or "nesterov" in str(caught.value)


def test_a_recipe_is_found_by_itself_its_name_or_its_options() -> None:
    assert find_recipe(None) is recipes["finetune"] == Recipe()
    assert find_recipe("vit") is recipes["vit"]
    assert find_recipe({"lr": 0.5}) == Recipe(lr=0.5)
    mine = Recipe(lr=0.3)
    assert find_recipe(mine) is mine


def test_unknown_names_get_the_nearest_ones() -> None:
    with pytest.raises(NameNotFoundError, match="did you mean 'finetune'"):
        find_recipe("fintune")
    with pytest.raises(NameNotFoundError, match="did you mean 'momentum'"):
        find_recipe({"momentun": 0.9})
    with pytest.raises(ConfigError, match="its name"):
        find_recipe(3)  # type: ignore[arg-type]
