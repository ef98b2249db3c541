"""Recipes in tables: what each changes, and each value of one."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.options import PublishedRecipe, Recipe, options_of
from shoal.registry import Registry
from shoal.report.table import Column, Row, Table, text_columns

_USUAL = "finetune"


def recipes_table(recipes: Registry[Recipe]) -> Table:
    """Return the table of all recipes by name, each with what it changes of the usual one."""
    rows = [Row((name, _changed(recipes[name], recipes[_USUAL]))) for name in recipes.names()]
    notes = (
        "shoal compress takes one by --recipe NAME; flags such as --lr change single values of it",
    )
    columns = text_columns("recipe", f"unlike {_USUAL}")
    return Table("recipes", columns, tuple(rows), notes)


def _changed(recipe: Recipe, usual: Recipe) -> str:
    if recipe == usual:
        return "nothing: the default values of every option"
    return ", ".join(
        f"{known.name} {known.text(getattr(recipe, known.name))}"
        for known in options_of(Recipe)
        if getattr(recipe, known.name) != getattr(usual, known.name)
    )


def published_table(rows: Sequence[PublishedRecipe]) -> Table:
    """Return the table of the recipes that papers published, each with what it is for."""
    columns = (
        *text_columns("recipe"),
        Column("epochs"),
        Column("batch"),
        *text_columns("optimizer"),
        Column("rate"),
        Column("decay"),
        Column("schedule", align="left", priority=1),
        Column("source", align="left", priority=2),
    )
    notes = (
        "--recipe auto takes the one for the model and the data; each also decides --epochs and "
        "--batch-size",
    )
    return Table("published recipes", columns, tuple(map(_published_row, rows)), notes)


def _published_row(row: PublishedRecipe) -> Row:
    recipe = row.recipe
    falls = [f"{recipe.gamma:g} at {round(share * row.epochs)}" for share in recipe.milestones]
    schedule = ", ".join(falls) or recipe.schedule
    rates = f"{recipe.lr:g}", f"{recipe.weight_decay:g}"
    figures = (row.epochs, row.batch_size, recipe.optimizer, *rates)
    return Row((row.name, *figures, schedule, row.source))


def recipe_table(name: str, recipe: Recipe) -> Table:
    """Return the table of a recipe's values, with their units and what they mean."""
    rows = (
        Row((known.name, known.text(getattr(recipe, known.name)), known.help))
        for known in options_of(Recipe)
    )
    return Table(f"recipe {name}", text_columns("option", "value", "meaning"), tuple(rows))
