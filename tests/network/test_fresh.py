"""Weights as at the beginning."""

from __future__ import annotations

import math

import torch
from torch import nn

import shoal
from shoal.network.fresh import reset_weights_


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.PReLU()
        self.positions = nn.Parameter(torch.full((16, 8), 7.0))
        self.gamma = nn.Parameter(torch.full((8,), 7.0))
        self.shift = nn.Parameter(torch.full((1, 8), 7.0))
        self.register_buffer("index", torch.arange(8.0))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.conv(x))).flatten(2).transpose(1, 2)  # [B, 16, 8]
        return self.head(((x + self.positions) * self.gamma + self.shift + self.index).mean(1))


def network() -> shoal.Network:
    model = Mixed()
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(5)
    return shoal.capture(model.eval(), torch.randn(2, 3, 6, 6)).copy()


def test_each_layer_has_its_own_types_initialisation() -> None:
    net = network()
    alone = reset_weights_(net)
    state = net.state_dict()
    for name, fan_in in (("conv.weight", 27), ("conv.bias", 27), ("head.weight", 8)):
        bound = 1 / math.sqrt(fan_in)  # of PyTorch's own, uniform
        assert 0.5 * bound < float(state[name].abs().max()) <= bound, name
    assert state["norm.weight"].tolist() == state["norm.running_var"].tolist() == [1.0] * 8
    assert state["norm.bias"].tolist() == state["norm.running_mean"].tolist() == [0.0] * 8
    assert int(state["norm.num_batches_tracked"]) == 0
    assert state["act.weight"].tolist() == [0.25]
    assert sorted(alone) == ["gamma", "positions", "shift"]
    assert state["gamma"].tolist() == [1.0] * 8
    assert state["shift"].tolist() == [[0.0] * 8]
    assert 0.01 < float(state["positions"].std()) < 0.03
    assert float(state["positions"].abs().max()) <= 0.04
    assert torch.equal(state["index"], torch.arange(8.0) + 5)  # no parameter


def test_the_seed_decides_and_the_callers_numbers_are_left_alone() -> None:
    nets = [network() for _ in range(3)]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        reset_weights_(net, seed)
    assert torch.equal(torch.get_rng_state(), before)
    one, same, other = (net.get_parameter("conv.weight") for net in nets)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_lines_become_the_identity() -> None:
    net = shoal.capture(shoal.models.digits_resnet(), torch.randn(2, 1, 8, 8)).copy()
    name = net.sites[0].name
    shoal.linearize_(net, [name], loader=[(torch.randn(64, 1, 8, 8), torch.zeros(64).long())])
    assert reset_weights_(net) == []
    line = net.get_submodule(name)
    assert set(line.slope.tolist()) == {1.0}
    assert set(line.intercept.tolist()) == {0.0}


class Gained(nn.Linear):
    """A layer with a parameter that its type does not have."""

    def __init__(self) -> None:
        super().__init__(4, 8)
        self.gain = nn.Parameter(torch.full((8,), 3.0))
        self.shift = nn.Parameter(torch.full((8,), 3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.gain + self.shift


def test_what_a_layer_has_beside_its_types_parameters_is_initialised_too() -> None:
    model = nn.Sequential(Gained(), nn.ReLU(), nn.Linear(8, 3))
    net = shoal.capture(model.eval(), torch.randn(2, 4)).copy()
    assert sorted(reset_weights_(net)) == ["0.gain", "0.shift"]
    assert net.get_parameter("0.gain").tolist() == [1.0] * 8
    assert net.get_parameter("0.shift").tolist() == [0.0] * 8
    assert float(net.get_parameter("0.weight").detach().abs().max()) <= 0.5  # of its own type


def test_a_layer_that_was_frozen_is_trained_and_a_note_says_so() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    net = shoal.capture(model.eval(), torch.randn(2, 4)).copy()
    reset_weights_(net)
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert any("2 frozen parameters" in note for note in net.notes)
