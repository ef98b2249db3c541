"""Recipes: everything a fine-tuning needs to know except the network, the data and the epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from shoal.errors import ConfigError, unknown_name
from shoal.registry import Registry
from shoal.training.precision import PRECISIONS

__all__ = ["Recipe", "find_recipe", "recipes"]

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "step", "constant")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. The defaults suit short fine-tunings of convolutional networks.

    Attributes:
        optimizer: "sgd", "adam" or "adamw".
        lr: the peak learning rate.
        momentum: of SGD (the others ignore it).
        nesterov: Nesterov's momentum for SGD.
        weight_decay: L2 penalty (decoupled for AdamW).
        decay_all: decay every parameter. By default those with one dimension or none (norms,
            biases, the slopes and intercepts of lines) are spared.
        schedule: "cosine" (to zero at the end), "step" (times `gamma` at each milestone) or
            "constant".
        milestones: for "step": when the rate falls, as fractions of the run, so 0.5 is halfway
            however many epochs there are.
        gamma: for "step": the factor at each milestone.
        warmup_epochs: the rate rises linearly over that many epochs (parts of one are fine); never
            over more than half of the run.
        label_smoothing: in [0, 1).
        clip_norm: largest norm of the whole gradient; None does not clip.
        precision: "auto", "fp32", "bf16" or "fp16"; weights are fp32 in any case.
        channels_last: keep 4-D weights and inputs channels-last, which is several times faster on
            CPUs and no slower on GPUs.
        accumulate: batches per optimizer step.
        distill: weight in [0, 1] of the distillation loss; above 0, `fit` needs a teacher.
        temperature: of the distillation loss.
        early_stop: stop after that many epochs without a better validation accuracy and go back to
            the best one; None never stops. Needs a validation loader.
    """

    optimizer: str = "sgd"
    lr: float = 0.02
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_all: bool = False
    schedule: str = "cosine"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    precision: str = "auto"
    channels_last: bool = True
    accumulate: int = 1
    distill: float = 0.0
    temperature: float = 4.0
    early_stop: int | None = None

    def __post_init__(self) -> None:
        """Raise `ConfigError` for the first value that makes no sense."""
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_number("lr", self.lr, above=0)
        _check_number("momentum", self.momentum, least=0, below=1)
        _check_number("weight_decay", self.weight_decay, least=0)
        _check_number("gamma", self.gamma, above=0, most=1)
        _check_number("warmup_epochs", self.warmup_epochs, least=0)
        _check_number("label_smoothing", self.label_smoothing, least=0, below=1)
        _check_number("distill", self.distill, least=0, most=1)
        _check_number("temperature", self.temperature, above=0)
        _check_number("accumulate", self.accumulate, least=1, whole=True)
        if self.clip_norm is not None:
            _check_number("clip_norm", self.clip_norm, above=0)
        if self.early_stop is not None:
            _check_number("early_stop", self.early_stop, least=1, whole=True)
        self._check_milestones()
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ConfigError("nesterov needs momentum above 0: set nesterov=False or a momentum")

    def _check_milestones(self) -> None:
        # A list, as JSON and YAML give, is taken; the field holds a tuple so that it stays frozen.
        if isinstance(self.milestones, str) or not hasattr(self.milestones, "__iter__"):
            raise ConfigError(f"recipe: milestones is {self.milestones!r}, not a list of fractions")
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for milestone in self.milestones:
            _check_number("milestones", milestone, above=0, below=1)
        if self.schedule == "step" and not self.milestones:
            raise ConfigError(
                "recipe: schedule 'step' needs milestones, fractions such as 0.5,0.75"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values; `from_dict` is the way back."""
        return {**asdict(self), "milestones": list(self.milestones)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe of `values`; what is left out has its default.

        Raises:
            NameNotFoundError: a key is no option of a recipe.
            ConfigError: a value makes no sense.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise unknown_name("recipe option", str(name), known)
        return cls(**values)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"recipe: {name} is {value!r}, choose one of {', '.join(choices)}")


def _check_number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> None:
    """Raise `ConfigError` unless `value` is a finite number within the bounds."""
    kinds = (int,) if whole else (int, float)
    fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if fits:
        number = float(value)  # type: ignore[arg-type]
        fits = (
            (least is None or number >= least)
            and (above is None or number > above)
            and (most is None or number <= most)
            and (below is None or number < below)
        )
    if not fits:
        bounds = {"at least": least, "above": above, "at most": most, "below": below}
        limits = " and ".join(
            f"{word} {limit:g}" for word, limit in bounds.items() if limit is not None
        )
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"recipe: {name} is {value!r}, it must be {kind} {limits}")


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
        ConfigError: a value makes no sense.
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
