"""Recipes in tables: what each changes, and each value of one."""

from __future__ import annotations

from shoal.options import Recipe, options_of
from shoal.registry import Registry
from shoal.report.table import Row, Table, text_columns

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


def recipe_table(name: str, recipe: Recipe) -> Table:
    """Return the table of a recipe's values, with their units and what they mean."""
    rows = (
        Row((known.name, known.text(getattr(recipe, known.name)), known.help))
        for known in options_of(Recipe)
    )
    return Table(f"recipe {name}", text_columns("option", "value", "meaning"), tuple(rows))
