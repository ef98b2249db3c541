"""The training room: fine-tuning and evaluation, in one process or several."""

from __future__ import annotations

from shoal.options import Recipe, find_recipe, recipes
from shoal.training.evaluate import Evaluation, evaluate
from shoal.training.fit import fit
from shoal.training.reports import BatchReport, EpochReport, FitReport

__all__ = [
    "BatchReport", "EpochReport", "Evaluation", "FitReport", "Recipe", "evaluate", "find_recipe",
    "fit", "recipes",
]  # fmt: skip
