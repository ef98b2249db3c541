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
from shoal.options.task import RegressOptions, SegmentOptions, TaskOptions
from shoal.options.training import DataOptions, Recipe, find_recipe, recipes

__all__ = [
    "Check",
    "DataOptions",
    "Option",
    "Options",
    "Recipe",
    "RegressOptions",
    "SegmentOptions",
    "TaskOptions",
    "above",
    "assert_takes",
    "at_least",
    "between",
    "find_recipe",
    "one_of",
    "option",
    "options_of",
    "recipes",
    "share_out",
]
