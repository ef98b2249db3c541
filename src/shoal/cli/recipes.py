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
    from shoal.options import recipes as known
    from shoal.report.recipe_tables import recipe_table, recipes_table

    if name is not None:
        shown = known[name]
        show(shown.to_dict(), [recipe_table(name, shown)], as_json=as_json, verbose=verbose)
        return
    value = {name: known[name].to_dict() for name in known.names()}
    told = f"all values of one:{to_type('recipes', 'NAME')}"
    show(value, [recipes_table(known)], [told], as_json=as_json, verbose=verbose)
