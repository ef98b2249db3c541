"""Options, each stated once. Nothing in this room needs PyTorch: `--help` need not wait for it."""

from __future__ import annotations

from shoal.options.base import (
    Check,
    Option,
    Options,
    above,
    assert_takes,
    at_least,
    between,
    one_of,
    option,
    options_of,
    share_out,
)
from shoal.options.distance import DistanceOptions
from shoal.options.recipes import (
    AUTO,
    PublishedRecipe,
    find_recipe,
    published_recipes,
    recipe_for,
    recipes,
)
from shoal.options.scale import at_budget
from shoal.options.task import RegressOptions, SegmentOptions, TaskOptions
from shoal.options.training import DataOptions, Recipe, seed_option

__all__ = [
    "AUTO",
    "Check",
    "DataOptions",
    "DistanceOptions",
    "Option",
    "Options",
    "PublishedRecipe",
    "Recipe",
    "RegressOptions",
    "SegmentOptions",
    "TaskOptions",
    "above",
    "assert_takes",
    "at_budget",
    "at_least",
    "between",
    "find_recipe",
    "one_of",
    "option",
    "options_of",
    "published_recipes",
    "recipe_for",
    "recipes",
    "seed_option",
    "share_out",
]
