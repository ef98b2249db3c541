"""The learning rate as a pure function of the step, so that there is no state to save."""

from __future__ import annotations

import math

from shoal.options import Recipe

__all__ = ["learning_rate"]


def learning_rate(recipe: Recipe, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """Return the learning rate of the `step`-th optimizer step of a run (from 0).

    The warm-up rises linearly to the peak, which its last step reaches, and covers half of the
    run at most. The cosine falls from the peak, right after the warm-up, towards 0 at the end
    of the run. Milestones are fractions of the whole run, warm-up included.

    Args:
        recipe: the schedule and its numbers.
        step: the number of optimizer steps done before.
        steps_per_epoch: optimizer steps in an epoch.
        epochs: epochs of the whole run.
    """
    total = max(1, steps_per_epoch * epochs)
    warm = round(min(recipe.warmup_epochs * steps_per_epoch, total / 2))
    if step < warm:
        return recipe.lr * (step + 1) / warm
    if recipe.schedule == "cosine":
        progress = min(1.0, (step - warm) / max(1, total - warm))
        return recipe.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
    if recipe.schedule == "step":
        # Rounded, so that 0.8 of 30 epochs is epoch 24 and not the step after.
        passed = sum(step >= round(milestone * total) for milestone in recipe.milestones)
        return float(recipe.lr * recipe.gamma**passed)
    return recipe.lr
