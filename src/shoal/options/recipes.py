"""Recipes by name, and those that papers published for a network and a data set.

The published ones are the rows of `recipes.csv`: Table 4 of Quétu et al. 2024 (EASIER), and the
recipes of the systems that are compared with it. They also say for how many epochs and in batches
of how many samples. Milestones stand there in epochs, as in the papers; an empty cell has the
usual value of shoal. Where a paper adds a distillation loss to the cross-entropy, here half of each
is taken: rates of SGD are doubled and weight decay is halved, which is the same training.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from shoal.errors import ConfigError, unknown_name
from shoal.options.base import Option, options_of
from shoal.options.training import Recipe
from shoal.registry import Registry

AUTO = "auto"
"""Chooses among the published recipes by the names of model and data."""

ANY = "*"


@dataclass(frozen=True)
class PublishedRecipe:
    """How a paper trained a network on a data set.

    Attributes:
        name: by which `recipe=` and `--recipe` take it.
        source: the paper, and where in it.
        method: the method it is for; empty for all, "-" for a phase that has to be asked for.
        models: patterns of the names of the networks it is for.
        data: the data sets it is for.
        epochs: of each training.
        batch_size: in samples.
        recipe: all else.
    """

    name: str
    source: str
    method: str
    models: tuple[str, ...]
    data: tuple[str, ...]
    epochs: int
    batch_size: int
    recipe: Recipe

    def values(self) -> dict[str, Any]:
        """Return all options that it decides, flat."""
        own = {"epochs": self.epochs, "batch_size": self.batch_size}
        return {**own, **self.recipe.to_dict()}

    def describe(self) -> str:
        """Return it in one line."""
        recipe = self.recipe
        where = f" of {self.source}" if self.source else ""
        rate = f"{recipe.optimizer} at {recipe.lr:g}, {recipe.schedule}"
        return f"{self.name}{where}: {self.epochs} epochs, batches of {self.batch_size}, {rate}"

    def is_for(self, model: str, data: str) -> bool:
        """Return whether it is for a model and a data set of these plain names."""
        fits = any(fnmatchcase(model, pattern) for pattern in self.models)
        return fits and self.is_for_data(data)

    def is_for_data(self, data: str) -> bool:
        """Return whether it is for a data set; "cifar10-jpeg" is one of "cifar10"."""
        return any(data == name or data.startswith((f"{name}-", f"{name}_")) for name in self.data)


@cache
def published_recipes() -> Mapping[str, PublishedRecipe]:
    """Return all published recipes by name, in the order in which they are looked through."""
    text = files("shoal.options").joinpath("recipes.csv").read_text(encoding="utf-8")
    found = map(_published, csv.DictReader(text.splitlines()))
    return {one.name: one for one in found}


def _published(row: Mapping[str, str]) -> PublishedRecipe:
    epochs = int(row["epochs"])
    values = {
        known.name: _value(known, row[known.name], epochs)
        for known in options_of(Recipe)
        if row.get(known.name)
    }
    return PublishedRecipe(
        name=row["name"],
        source=row["source"],
        method=row["method"],
        models=tuple(row["model"].split("|")),
        data=tuple(row["data"].split("|")),
        epochs=epochs,
        batch_size=int(row["batch_size"]),
        recipe=Recipe.from_dict(values),
    )


def _value(known: Option, text: str, epochs: int) -> Any:
    if known.of is float:  # the milestones
        return tuple(int(milestone) / epochs for milestone in text.split(";"))
    return text == "true" if known.kind is bool else known.kind(text)


def recipe_for(model: str, data: str, method: str | None = None) -> PublishedRecipe:
    """Return the published recipe for a model and a data set.

    A recipe of all methods is taken first, since the papers compare under one; then one of the
    method itself. A model that no paper trained on these data takes what all models were trained
    with there, if that was the same.

    Args:
        model: its name, as on the command line ("torchvision:resnet18?num_classes=10").
        data: the name of the data set, likewise ("pacs:ROOT"); of "folder:ROOT" the folder's name.
        method: the name of the method.

    Raises:
        ConfigError: none fits.

    Example:
        >>> from shoal.options import recipe_for
        >>> found = recipe_for("torchvision:resnet18", "cifar10:data")
        >>> found.name, found.epochs, found.batch_size, found.recipe.lr
        ('easier_resnet18_cifar10', 160, 128, 0.1)
    """
    network, images = plain_names(model, data)
    own = (method or "").partition("?")[0]
    known = [one for one in published_recipes().values() if one.method in ("", own)]
    fitting = [one for one in known if one.is_for(network, images)]
    # A more exact one of the method's own comes before that of all methods only by name.
    fitting.sort(key=lambda one: bool(one.method) and ANY in one.models)
    if fitting:
        return fitting[0]
    alike = [one for one in known if not one.method and one.is_for_data(images)]
    if alike and all(one.values() == alike[0].values() for one in alike):
        return replace(alike[0], name=f"easier_{images}", source=f"{alike[0].source}, all networks")
    raise ConfigError(
        f"no published recipe is for the model '{network}' on the data '{images}': choose one by "
        "its name; `shoal recipes` lists them"
    )


def plain_names(model: str, data: str) -> tuple[str, str]:
    """Return the names of a model and of data without libraries, arguments and folders."""
    kind, _, root = data.partition("?")[0].strip().partition(":")
    images = PurePath(root).name if kind == "folder" else kind
    return model.partition("?")[0].strip().rpartition(":")[2].lower(), images.lower()


recipes: Registry[Recipe] = Registry("recipe")

recipes.register("finetune")(Recipe())
# After a removal, with the dense network as the teacher. The loss is about (temperature²) times
# steeper than without one, so the rate is lower; both were chosen on ResNet-32 (docs/measured.md).
recipes.register("distill")(Recipe(lr=0.005, distill=0.7))
# For a long training at the end: a patient and consistent teacher (Beyer et al. 2022).
recipes.register("patient")(Recipe(lr=0.02, distill=0.95, mix=1.0))
# Those of Table 4 by what they are for: ResNet-18 and MobileNetV2 on CIFAR-10, PACS and VLCS, and
# the data sets of transfer.
for _name, _row in (
    ("easier_cifar", "easier_resnet18_cifar10"),
    ("easier_domainbed", "easier_resnet18_pacs"),
    ("easier_transfer", "easier_resnet18_flowers102"),
):
    recipes.register(_name)(published_recipes()[_row].recipe)
recipes.register("vit")(
    Recipe(
        optimizer="adamw",
        lr=1e-4,
        weight_decay=0.05,
        warmup_epochs=0.5,
        label_smoothing=0.1,
        clip_norm=1.0,
    )
)


def find_recipe(recipe: Recipe | str | Mapping[str, Any] | None) -> Recipe:
    """Return the recipe meant: itself, by its name, with these values, or the default one."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe is None:
        return recipes["finetune"]
    if isinstance(recipe, str):
        if recipe == AUTO:
            raise ConfigError(
                "the recipe 'auto' goes by the names of model and data, which are not known here: "
                "give shoal.options.recipe_for(model, data).recipe, or the name of a recipe"
            )
        if recipe in published_recipes() and recipe not in recipes:
            return published_recipes()[recipe].recipe
        if recipe not in recipes:
            raise unknown_name("recipe", recipe, [*recipes.names(), *published_recipes(), AUTO])
        return recipes[recipe]
    if isinstance(recipe, Mapping):
        return Recipe.from_dict(recipe)
    raise ConfigError(
        f"recipe is a {type(recipe).__name__}: give a Recipe, its name or its options"
    )
