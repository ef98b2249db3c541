"""How the papers build and train each network on each data set, as options of a run."""

from __future__ import annotations

from typing import Any

from shoal.models import models
from shoal.options.recipes import published_recipes, recipe_for

_CIFAR = "easier_resnet18_cifar10"
"""The recipe of networks that no paper here tells one for."""


def network(model: str, data: str) -> dict[str, Any]:
    """Return the options that name a network of the tables, and whether it is pretrained.

    Those of shoal's own are trained from scratch, and so is ResNet-18 on Tiny-ImageNet.
    """
    if model in models.names():
        return {"model": f"shoal:{model}"}
    pretrained = (model, data) != ("resnet18", "tiny_imagenet")
    return {"model": f"torchvision:{model}", **({"pretrained": True} if pretrained else {})}


def training(model: str, data: str, budget: float) -> dict[str, Any]:
    """Return the options of training: Table 4 of Quétu et al. 2024, a `budget` of its epochs.

    The same schedule trains the dense network and fine-tunes after each removal. Layer pruning's
    recipe is not published.
    """
    own = model.startswith("cifar_resnet")
    found = published_recipes()[_CIFAR] if own else recipe_for(model, data)
    share = {} if budget == 1 else {"budget": budget}
    return {"recipe": found.name, "dense_epochs": found.epochs, **share}
