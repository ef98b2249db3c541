"""The training room: fine-tuning and evaluation, in one process or several."""

from __future__ import annotations

from shoal.options import Recipe, find_recipe, recipes
from shoal.seeds import derive_seed, preserved_rng, seed_everything
from shoal.training.evaluate import Evaluation, evaluate
from shoal.training.fit import fit
from shoal.training.losses import logits_of
from shoal.training.reports import BatchReport, EpochReport, FitReport

__all__ = [
    "BatchReport",
    "EpochReport",
    "Evaluation",
    "FitReport",
    "Recipe",
    "derive_seed",
    "evaluate",
    "find_recipe",
    "fit",
    "logits_of",
    "preserved_rng",
    "recipes",
    "seed_everything",
]
