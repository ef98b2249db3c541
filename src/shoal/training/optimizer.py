"""The optimizer of a recipe, built anew for every fit because surgery changes the parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from shoal.errors import TrainingError
from shoal.training.recipe import Recipe

__all__ = ["build_optimizer", "parameter_groups"]


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the trainable parameters in up to two groups: with weight decay and without.

    Raises:
        TrainingError: no parameter requires a gradient.
    """
    trainable = [p for p in network.parameters() if p.requires_grad]
    if not trainable:
        raise TrainingError(
            "the network has no parameter to train: set requires_grad=True on those to fine-tune"
        )
    decayed = [p for p in trainable if recipe.decay_all or p.ndim > 1]
    spared = [p for p in trainable if not (recipe.decay_all or p.ndim > 1)]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer of `recipe` for the trainable parameters of `network`.

    Raises:
        TrainingError: no parameter requires a gradient.
    """
    groups = parameter_groups(network, recipe)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.lr)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
