from __future__ import annotations

import pytest
import torch
from torch import nn

from shoal.errors import TrainingError
from shoal.training import Recipe
from shoal.training.optimizer import Optimizers, parameter_groups


def test_parameters_of_one_dimension_do_not_decay() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    (_, decayed), (_, spared) = parameter_groups(net, Recipe(weight_decay=0.1))
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert {id(p) for p in decayed["params"]} == {id(net[0].weight), id(net[3].weight)}
    assert len(spared["params"]) == 4


def test_decay_all_decays_everything() -> None:
    ((_, group),) = parameter_groups(nn.Linear(3, 2), Recipe(decay_all=True, weight_decay=0.1))
    assert (len(group["params"]), group["weight_decay"]) == (2, 0.1)


def test_frozen_parameters_are_left_out() -> None:
    net = nn.Linear(3, 2)
    net.weight.requires_grad_(False)
    ((_, group),) = parameter_groups(net, Recipe())
    assert [id(p) for p in group["params"]] == [id(net.bias)]
    net.bias.requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter to train"):
        Optimizers(net, Recipe())


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_the_optimizer_is_the_recipes(name: str, kind: type) -> None:
    (optimizer,) = Optimizers(nn.Linear(2, 2), Recipe(optimizer=name)).each
    assert type(optimizer) is kind


def test_a_scaler_of_losses_bears_a_group_without_gradients() -> None:
    net = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    own = [{"params": net[1].parameters(), "optimizer": "adam"}]
    optimizers = Optimizers(net, Recipe(), own)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [p.detach().clone() for p in net.parameters()]
    scaler.scale(net[0](torch.ones(1, 2)).sum()).backward()
    for optimizer in optimizers.with_gradients():
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
    scaler.update()
    moved = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
    assert moved == [True, True, False, False]
