"""Recipes that papers published: the table, and how one is found."""

from __future__ import annotations

import re

import pytest

from shoal.errors import ConfigError, NameNotFoundError, OptionError
from shoal.options import (
    AUTO,
    Recipe,
    at_budget,
    find_recipe,
    published_recipes,
    recipe_for,
    recipes,
)
from shoal.search.job import job_of
from shoal.search.options import SearchOptions
from shoal.search.settings import Settings

MODELS = ("resnet18", "swin_t", "mobilenet_v2", "vgg16")
ROWS = published_recipes()


def table_4() -> dict[tuple[str, str], list[object]]:
    """Table 4 of Quétu et al. 2024 by model and data, as its 28 rows are written there."""
    rates = {"resnet18": 0.1, "swin_t": 0.001, "mobilenet_v2": 0.1, "vgg16": 0.01}
    sgd, adam = ["SGD", 0.9], ["Adam", None]
    rows: dict[tuple[str, str], list[object]] = {}
    for model in MODELS:
        for data in ("cifar10", "tiny_imagenet"):
            rows[model, data] = [160, 128, *sgd, rates[model], [80, 120], 0.1, 1e-4]
        for data in ("pacs", "vlcs"):
            rows[model, data] = [30, 16, *sgd, 0.001, [24], 0.1, 5e-4]
        for data in ("flowers102", "dtd", "aircraft"):
            rows[model, data] = [50, 16, *adam, 1e-4, [], None, 0]
    return rows


def test_the_28_rows_of_table_4() -> None:
    assert len(table_4()) == 28 == sum(row.source.endswith("Table 4") for row in ROWS.values())
    for (model, data), printed in table_4().items():
        row = ROWS[f"easier_{model}_{data}"]
        epochs, batch, optimizer, momentum, rate, milestones, factor, decay = printed
        recipe = row.recipe
        assert (row.epochs, row.batch_size) == (epochs, batch)
        assert (recipe.optimizer, recipe.lr, recipe.weight_decay) == (
            str(optimizer).lower(),
            rate,
            decay,
        )
        assert [round(share * row.epochs) for share in recipe.milestones] == milestones
        if optimizer == "SGD":
            assert (recipe.momentum, recipe.gamma, recipe.schedule) == (momentum, factor, "step")
            assert recipe.decay_all
            assert not recipe.nesterov
        else:
            assert recipe.schedule == "constant"


def test_every_row_is_a_recipe_of_its_own_name() -> None:
    assert not set(ROWS) & {*recipes.names(), AUTO}
    for name, row in ROWS.items():
        assert re.fullmatch(r"[a-z0-9_]+", name)
        assert find_recipe(name) is row.recipe
        assert Recipe.from_dict(row.recipe.to_dict()) == row.recipe
        assert all(0 < share < 1 for share in row.recipe.milestones)


def test_recipes_of_compared_systems() -> None:
    search, finetune = ROWS["snl_search"].recipe, ROWS["snl_finetune"].recipe
    assert (search.optimizer, search.lr, search.weight_decay, search.distill) == (
        "adam", 1e-3, 0.0, 0.5,
    )  # fmt: skip
    # Half of CE + T²·KL at 2 · 0.001 with 0.0005 / 2 is the published training.
    assert (finetune.lr, finetune.weight_decay, finetune.temperature) == (2e-3, 2.5e-4, 4.0)
    senet = ROWS["senet_finetune"]
    assert [round(share * senet.epochs) for share in senet.recipe.milestones] == [150, 180, 210]
    cka = ROWS["cka_removal"]
    assert (cka.epochs, cka.recipe.nesterov, cka.recipe.weight_decay) == (200, True, 2e-4)
    assert ROWS["layer_folding_vgg_slopes"].recipe.milestones == (0.51,)


@pytest.mark.parametrize(
    ("model", "data", "method", "name"),
    [
        ("resnet18", "cifar10:data", None, "easier_resnet18_cifar10"),
        ("torchvision:resnet18?num_classes=7", "pacs:ROOT?leave_out=sketch", "easier",
         "easier_resnet18_pacs"),
        ("shoal:resnet18_cifar", "folder:/data/cifar10-jpeg", "shoal", "easier_resnet18_cifar10"),
        ("timm:mobilenetv2_100", "dtd:x", "egp", "easier_mobilenet_v2_dtd"),
        ("timm:swin_tiny_patch4_window7_224", "vlcs:x", None, "easier_swin_t_vlcs"),
        ("mine/nets.py:vgg16_bn", "tiny_imagenet:x", "layer_folding", "easier_vgg16_tiny_imagenet"),
        ("vgg16", "cifar10:x", "tlc", "tlc_vgg16_cifar10"),
        ("cifar_resnet56", "cifar10:x", "layer_pruning", "cka_removal"),
        ("cifar_resnet20", "cifar10:x", "layer_folding?slope_lr=0.1", "layer_folding_resnet"),
        ("resnet18", "cifar100:x", "snl", "snl_finetune"),
        # All networks were trained alike there, so one more would have been.
        ("tf_efficientnet_lite0", "pacs:x", "easier", "easier_pacs"),
        ("convnext_tiny", "flowers102:x", None, "easier_flowers102"),
    ],
)  # fmt: skip
def test_a_recipe_is_found_by_model_and_data(
    model: str, data: str, method: str | None, name: str
) -> None:
    assert recipe_for(model, data, method).name == name


@pytest.mark.parametrize(
    ("model", "data", "method"),
    [
        ("cifar_resnet56", "cifar10:x", "easier"),  # networks differ there
        ("resnet18", "digits", None),
        ("resnet18", "cifar100:x", "easier"),
        ("resnet18", "folder:/data/cifar100", None),
        ("vgg16", "cifar100:x", "snl_dense"),
    ],
)
def test_where_none_fits_that_is_said(model: str, data: str, method: str | None) -> None:
    with pytest.raises(ConfigError, match=r"no published recipe is for the model '.*' on the data"):
        recipe_for(model, data, method)


def test_unknown_names_are_told_with_the_nearest() -> None:
    with pytest.raises(NameNotFoundError, match="did you mean 'easier_swin_t_dtd'"):
        find_recipe("easier_swint_dtd")
    with pytest.raises(ConfigError, match="goes by the names of model and data"):
        find_recipe(AUTO)


def job(**values: object):
    return job_of({"model": "resnet18", "data": "pacs:ROOT", "method": "easier"}, values)


def test_auto_decides_epochs_batch_and_training_and_says_which() -> None:
    made = job(recipe=AUTO)
    row = ROWS["easier_resnet18_pacs"]
    assert made.settings.recipe == row.recipe
    assert (made.settings.search.epochs, made.reading.batch_size) == (30, 16)
    (note,) = made.notes
    assert "easier_resnet18_pacs of Quétu et al. 2024, Table 4: 30 epochs, batches of 16" in note
    assert job_of(made.to_dict(), {}).settings == made.settings  # as config.yaml has it
    assert job_of(made.to_dict(), {}).notes == ()


def test_every_value_can_be_overridden() -> None:
    made = job(recipe=AUTO, epochs=3, batch_size=8, lr=0.5)
    assert (made.settings.search.epochs, made.reading.batch_size) == (3, 8)
    assert made.settings.recipe.lr == 0.5
    assert made.settings.recipe.milestones == ROWS["easier_resnet18_pacs"].recipe.milestones


def test_a_recipe_as_a_flag_replaces_what_the_file_spells_out() -> None:
    file = {**job(epochs=7, lr=0.3).to_dict()}
    made = job_of(file, {"recipe": "easier_vgg16_cifar10", "weight_decay": 0.0})
    assert (made.settings.search.epochs, made.reading.batch_size) == (160, 128)
    assert (made.settings.recipe.lr, made.settings.recipe.weight_decay) == (0.01, 0.0)
    in_file = job_of({**job().about(), "recipe": AUTO, "epochs": 7}, {})
    assert in_file.settings.search.epochs == 7


def test_auto_needs_model_and_data() -> None:
    with pytest.raises(ConfigError, match="no data are given"):
        job_of({"model": "resnet18"}, {"recipe": AUTO})


def test_a_budget_scales_all_that_counts_epochs_and_milestones_go_along() -> None:
    settings = Settings.of(
        "layer_folding", "easier_resnet18_cifar10", epochs=160, dense_epochs=15, final_epochs=0,
        rewind=4, slope_epochs=100, warmup_epochs=5, early_stop=3, budget=0.1,
    )  # fmt: skip
    worked = settings.at_budget()
    search = worked.search
    assert (search.epochs, search.dense_epochs, search.final_epochs) == (16, 2, 0)
    assert (search.rewind, worked.options.slope_epochs) == (1, 10)
    assert (worked.recipe.warmup_epochs, worked.recipe.early_stop) == (0.5, 1)
    assert [share * search.epochs for share in worked.recipe.milestones] == [8, 12]
    assert worked.options.slope_penalty == settings.options.slope_penalty
    assert settings.identity()["budget"] == 0.1
    assert settings.search.epochs == 160  # as asked for, which config.yaml keeps


def test_a_wait_in_epochs_is_scaled_as_well() -> None:
    found = Settings.of("snl", kappa_wait=50, search_epochs=200, budget=0.1).at_budget().options
    assert (found.kappa_wait, found.search_epochs) == (5, 20)


def test_without_a_budget_nothing_changes() -> None:
    settings = Settings.of("easier", epochs=3)
    assert settings.at_budget() is settings
    assert at_budget(SearchOptions(epochs=1), 0.01).epochs == 1
    assert at_budget(SearchOptions(epochs=2), 2.0).epochs == 4


@pytest.mark.parametrize("budget", [0.0, -0.1, 3.0])
def test_a_budget_is_a_share(budget: float) -> None:
    with pytest.raises(OptionError, match="budget"):
        SearchOptions(budget=budget)
