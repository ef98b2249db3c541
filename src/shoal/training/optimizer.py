"""The optimizers of a fit, and their learning rate.

Optimizers are built for every fit, because surgery changes the parameters. The learning rate is a
pure function of the step, so that there is no state to save.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from shoal.errors import ConfigError, TrainingError, unknown_name
from shoal.options import Recipe

_SETTINGS = ("optimizer", "lr", "momentum", "nesterov", "weight_decay")


def parameter_groups(
    network: nn.Module, recipe: Recipe, own: Iterable[Mapping[str, Any]] = ()
) -> list[tuple[Recipe, dict[str, Any]]]:
    """Return the trainable parameters in groups, each with the recipe it is trained by.

    First come those of the recipe, with weight decay and without, then the `own` ones, as `fit`
    takes them.
    """
    names = {id(p): name for name, p in network.named_parameters()}
    taken: set[int] = set()
    chosen = []
    for group in own:
        chosen += _split(_parameters(group, names, taken), _recipe_of(group, recipe))
    left = [p for p in network.parameters() if p.requires_grad and id(p) not in taken]
    groups = [*_split(left, recipe), *chosen]
    if not groups:
        raise TrainingError(
            "the network has no parameter to train: set requires_grad=True on those to fine-tune"
        )
    return groups


def _parameters(
    group: Mapping[str, Any], names: Mapping[int, str], taken: set[int]
) -> list[nn.Parameter]:
    if "params" not in group:
        raise ConfigError("a parameter group has no 'params': list its parameters there")
    parameters = list(group["params"])
    for parameter in parameters:
        name = names.get(id(parameter))
        if name is None:
            raise ConfigError("a parameter group holds a parameter that is not the network's")
        if id(parameter) in taken:
            raise ConfigError(f"parameter {name} is in two groups: remove it from one")
        if not parameter.requires_grad:
            raise ConfigError(f"parameter {name} is in a group but frozen: remove it")
        taken.add(id(parameter))
    return parameters


def _recipe_of(group: Mapping[str, Any], recipe: Recipe) -> Recipe:
    known = ("params", "constant", *_SETTINGS)
    for key in group:
        if key not in known:
            raise unknown_name("setting of a parameter group", str(key), known)
    given = {key: group[key] for key in _SETTINGS if key in group}
    if given.get("optimizer", recipe.optimizer) != recipe.optimizer:
        # The recipe's momentum was not meant for this optimizer.
        given = {"momentum": 0.0, "nesterov": False, **given}
    if given.get("momentum") == 0 and "nesterov" not in given:
        given["nesterov"] = False
    if group.get("constant", False):
        given |= {"schedule": "constant", "warmup_epochs": 0.0}
    if "weight_decay" in given:
        given["decay_all"] = True
    return replace(recipe, **given)


def _split(
    parameters: Iterable[nn.Parameter], recipe: Recipe
) -> list[tuple[Recipe, dict[str, Any]]]:
    """Return the parameters in up to two groups: with weight decay and without."""
    parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in parameters:
        parts[recipe.decay_all or parameter.ndim > 1].append(parameter)
    return [
        (recipe, {"params": part, "weight_decay": decayed * recipe.weight_decay, "lr": recipe.lr})
        for decayed, part in parts.items()
        if part
    ]


class Optimizers:
    """One optimizer for all of the `parameter_groups` that ask for the same kind: mostly one."""

    def __init__(
        self, network: nn.Module, recipe: Recipe, own: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        kinds: dict[str, list[tuple[Recipe, dict[str, Any]]]] = {}
        for plan, group in parameter_groups(network, recipe, own):
            kinds.setdefault(plan.optimizer, []).append((plan, group))
        self._plans = [[plan for plan, _ in groups] for groups in kinds.values()]
        self.each = [_build(kind, groups) for kind, groups in kinds.items()]

    def set_learning_rates(self, rate: Callable[[Recipe], float]) -> None:
        """Give every group the learning rate that `rate` returns for its recipe."""
        for plans, optimizer in zip(self._plans, self.each, strict=True):
            for plan, group in zip(plans, optimizer.param_groups, strict=True):
                group["lr"] = rate(plan)

    def with_gradients(self) -> list[torch.optim.Optimizer]:
        """Return those that have something to do: a scaler of losses refuses the others."""
        return [
            optimizer
            for optimizer in self.each
            if any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
        ]


def _build(kind: str, groups: list[tuple[Recipe, dict[str, Any]]]) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(
            {**group, "momentum": plan.momentum, "nesterov": plan.nesterov}
            for plan, group in groups
        )
    adam = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
    return adam([group for _, group in groups])


def learning_rate(recipe: Recipe, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """Return the learning rate of the `step`-th optimizer step of a run (from 0).

    The warm-up rises linearly to the peak, which its last step reaches, and covers half of the
    run at most. The cosine falls from the peak, right after the warm-up, towards 0 at the end
    of the run. Milestones are fractions of the whole run, warm-up included.
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
