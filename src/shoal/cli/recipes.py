"""`shoal recipes`: the sets of training options that have a name, and their values."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli import params
from shoal.cli.completion import completing
from shoal.cli.screen import show


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Show each value of this one.",
            show_default=False,
            autocompletion=completing("recipe"),
        ),
    ] = None,
    verbose: params.Verbose = False,
    as_json: params.Json = False,
) -> None:
    """List the recipes that --recipe takes, or show the values of one."""
    from shoal.display import to_type
    from shoal.options import find_recipe, published_recipes
    from shoal.options import recipes as known
    from shoal.report.recipe_tables import published_table, recipe_table, recipes_table

    published = published_recipes()
    if name is not None:
        recipe, row = find_recipe(name), None if name in known else published.get(name)
        told = [] if row is None else [row.describe()]
        values = recipe.to_dict() if row is None else row.values()
        show(values, [recipe_table(name, recipe)], told, as_json=as_json, verbose=verbose)
        return
    value = {name: known[name].to_dict() for name in known.names()}
    value |= {row.name: row.values() for row in published.values()}
    tables = [recipes_table(known), published_table(list(published.values()))]
    told = [f"all values of one:{to_type('recipes', 'NAME')}"]
    show(value, tables, told, as_json=as_json, verbose=verbose)
