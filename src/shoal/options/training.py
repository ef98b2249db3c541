"""Recipes: everything a training needs to know except the network, the data and the epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.errors import ConfigError, OptionError
from shoal.options.base import Options, above, at_least, between, one_of, option
from shoal.registry import Registry

__all__ = ["PRECISIONS", "Recipe", "find_recipe", "recipes"]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class Recipe(Options):
    """How to train. The defaults suit short fine-tunings of convolutional networks.

    Example:
        >>> import shoal
        >>> recipe = shoal.Recipe(lr=0.1, schedule="step", milestones=(0.5, 0.75))
        >>> recipe.gamma, recipe.to_dict()["lr"]
        (0.1, 0.1)
    """

    optimizer: str = option("sgd", "The optimizer.", check=one_of("sgd", "adam", "adamw"))
    lr: float = option(
        0.02,
        "The peak learning rate. Lower it if the loss is not finite or a layer dies.",
        check=above(0),
    )
    momentum: float = option(0.9, "Momentum of sgd.", check=between(0, 1, ends="[)"))
    nesterov: bool = option(True, "Nesterov's momentum for sgd.")
    weight_decay: float = option(
        5e-4, "L2 penalty on weights (decoupled for adamw).", check=at_least(0)
    )
    decay_all: bool = option(
        False,
        "Penalise every parameter. By default those with one dimension or none (norms, biases, "
        "slopes and intercepts of lines) are not penalised.",
    )
    schedule: str = option(
        "cosine",
        "How the learning rate falls: 'cosine' (to zero at the end), 'step' (times gamma at each "
        "milestone) or 'constant'.",
        check=one_of("cosine", "step", "constant"),
    )
    milestones: tuple[float, ...] = option(
        (),
        "For 'step': when the rate falls, as fractions of the training: 0.5 is halfway.",
        check=between(0, 1, ends="()"),
        default_text="none",
    )
    gamma: float = option(
        0.1, "For 'step': the factor at each milestone.", check=between(0, 1, ends="(]")
    )
    warmup_epochs: float = option(
        0.0,
        "The learning rate rises linearly over this many epochs, at most over half of them.",
        unit="epochs",
        check=at_least(0),
    )
    label_smoothing: float = option(0.0, "Label smoothing.", check=between(0, 1, ends="[)"))
    clip_norm: float | None = option(
        None,
        "Largest norm of the gradient. Set it, to 1 say, if the loss is not finite.",
        check=above(0),
        default_text="no clipping",
    )
    precision: str = option(
        "auto",
        "Number format of the arithmetic; weights stay fp32. 'auto' is bf16 where the hardware "
        "computes in it.",
        check=one_of(*PRECISIONS),
    )
    channels_last: bool = option(
        True, "Memory format of images and 4-D weights; several times faster on CPUs."
    )
    accumulate: int = option(
        1,
        "Batches per optimizer step: a larger batch where memory is short.",
        check=at_least(1),
    )
    distill: float = option(
        0.0,
        "Weight of distillation: learning from the dense network's outputs. Helps when there are "
        "few epochs.",
        check=between(0, 1),
    )
    temperature: float = option(
        4.0, "Temperature of distillation (Hinton et al. 2015).", check=above(0)
    )
    early_stop: int | None = option(
        None,
        "Stop a training after this many epochs without a better validation accuracy, and go back "
        "to the best.",
        unit="epochs",
        check=at_least(1),
        default_text="never",
    )

    def __post_init__(self) -> None:
        """Check the values, each by itself and together; raises `OptionError`."""
        super().__post_init__()
        if self.schedule == "step" and not self.milestones:
            raise OptionError("milestones", (), "fractions such as 0.5,0.75 for schedule 'step'")
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise OptionError("momentum", 0, "a number above 0, or set nesterov to false")


recipes: Registry[Recipe] = Registry("recipe")

recipes.register("finetune")(Recipe())
# After a removal, with the dense network as the teacher. The loss is about (temperature²) times
# steeper than without one, so the rate is lower; both were chosen on ResNet-32 (docs/measured.md).
recipes.register("distill")(Recipe(lr=0.005, distill=0.7))

# The three that follow are Table 4 of Quétu et al. 2024 (EASIER): ResNet-18 and MobileNetV2 on
# CIFAR-10, PACS and VLCS, and the transfer data sets. The paper decays all parameters.
recipes.register("easier_cifar")(
    Recipe(
        lr=0.1,
        nesterov=False,
        weight_decay=1e-4,
        decay_all=True,
        schedule="step",
        milestones=(80 / 160, 120 / 160),
    )
)
recipes.register("easier_domainbed")(
    Recipe(
        lr=1e-3,
        nesterov=False,
        weight_decay=5e-4,
        decay_all=True,
        schedule="step",
        milestones=(24 / 30,),
    )
)
recipes.register("easier_transfer")(
    Recipe(optimizer="adam", lr=1e-4, weight_decay=0.0, schedule="constant")
)
recipes.register("vit")(
    Recipe(
        optimizer="adamw",
        lr=1e-4,
        weight_decay=0.05,
        warmup_epochs=0.5,
        label_smoothing=0.1,
        clip_norm=1.0,
    )
)


def find_recipe(recipe: Recipe | str | Mapping[str, Any] | None) -> Recipe:
    """Return the recipe meant: itself, the one of that name, one of these values, or the default.

    Raises:
        NameNotFoundError: there is no recipe, or no option, of that name.
        ConfigError: a value is of another type or out of its range.
    """
    if recipe is None:
        return recipes["finetune"]
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str):
        return recipes[recipe]
    if isinstance(recipe, Mapping):
        return Recipe.from_dict(recipe)
    raise ConfigError(
        f"recipe is a {type(recipe).__name__}: give a Recipe, its name or its options"
    )
