"""Merging keeps all that belongs to a network beside its outputs: sites, modes, types and hooks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from shoal.errors import ConfigError
from shoal.merge.merge import merge_
from shoal.network import Network, capture
from shoal.network.modules import Line
from shoal.surgery import linearize_


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    nn.init.normal_(layer.running_mean, 0.0, 0.3)
    nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return layer


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------------- sites


class Pooled(nn.Module):
    """A sum whose branches do not come from one tensor, a rectifier, and pooling."""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.branch = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.act = nn.ReLU(), nn.ReLU()
        self.pool, self.fc = pool, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        return self.fc(self.pool(self.act(x + self.branch(x))).flatten(1))


def pooled_line(pool: Callable[[Tensor], Tensor]) -> Network:
    """A captured `Pooled` whose last rectifier is a line."""
    torch.manual_seed(0)
    network = capture(Pooled(pool).eval(), images())
    linearize_(network, ["act"], loader=[images(8)])
    return network


def test_a_line_before_pooling_stays_what_it_is_and_where_it_is() -> None:
    network = pooled_line(lambda x: F.avg_pool2d(x, 4))
    expected = network(images(3))
    report = merge_(network, policy="fold")
    assert report.depth_before == report.depth_after == 3
    assert report.macs_after == report.macs_before
    assert isinstance(network.get_submodule("act"), Line)
    assert {site.name: site.linearized for site in network.sites} == {"relu": None, "act": "line"}
    assert network.sites_left == 1
    with pytest.raises(ConfigError, match="site 'act' is linearized already"):
        linearize_(network, ["act"], how="identity")
    torch.testing.assert_close(network(images(3)), expected)


def test_a_convolution_made_of_a_line_and_pooling_is_no_rectifier() -> None:
    """A line less the mean of the neighbours, much as a PoolFormer mixes."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.fc = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(self.conv(x), 2)
            return self.fc(F.relu(self.act(x) - F.avg_pool2d(x, 3, 1, 1)).mean((2, 3)))

    torch.manual_seed(0)
    network = capture(Mixer().eval(), images())
    linearize_(network, ["act"], loader=[images(8)])
    expected = network(images(3))
    (made,) = merge_(network, policy="always").merged
    assert isinstance(network.get_submodule(made.name), nn.Conv2d)
    assert [(site.name, site.linearized) for site in network.sites] == [("relu", None)]
    assert network.sites_left == 1
    torch.testing.assert_close(network(images(3)), expected)


# ---------------------------------------------------------------------- modes and frozen weights


def two_normed() -> Network:
    """Each convolution has a norm to fold, and after the first comes a norm that stays."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), norm(4), nn.ReLU()]
    layers += [nn.Conv2d(4, 5, 3), norm(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 2)]
    return capture(nn.Sequential(*layers), images()).copy()


def test_a_frozen_norm_stays_in_eval_mode_and_all_else_in_training() -> None:
    network = two_normed().train()
    network.get_submodule("3").eval()
    assert len(merge_(network, policy="fold").merged) == 2
    modes = {name: module.training for name, module in network.named_modules()}
    assert modes.keys() >= {"0", "3", "5", "9"}
    assert [name for name, training in modes.items() if not training] == ["3"]
    before = network.get_buffer("3.running_mean").clone()
    network(images())
    assert torch.equal(network.get_buffer("3.running_mean"), before)


def test_what_was_made_of_frozen_layers_alone_is_frozen() -> None:
    network = two_normed()
    for name in ("0", "1", "5"):  # the norm after the second convolution is to be trained
        network.get_submodule(name).requires_grad_(False)
    merge_(network, policy="fold")
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert frozen == ["0.weight", "0.bias"]
    assert {name.partition(".")[0] for name, _ in network.named_parameters()} == set("0359")


def test_frozen_layers_stay_frozen_where_they_move_behind_a_mean() -> None:
    layers = [nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    network = capture(nn.Sequential(*layers).requires_grad_(False).eval(), images()).copy()
    merge_(network, policy="always")
    assert [p.requires_grad for p in network.parameters()] == [False, False]


def test_frozen_weights_that_are_computed_stay_frozen() -> None:
    normed = weight_norm(nn.Conv2d(3, 4, 3))
    layers = [normed, nn.ReLU(), weight_norm(nn.Conv2d(4, 2, 3)), nn.ReLU()]
    normed.requires_grad_(False)
    network = capture(nn.Sequential(*layers).eval(), images()).copy()
    merge_(network, policy="fold")
    trained = {name: p.requires_grad for name, p in network.named_parameters()}
    assert trained == {"0.weight": False, "0.bias": False, "2.weight": True, "2.bias": True}


def test_a_line_that_is_left_is_frozen_where_it_was() -> None:
    network = pooled_line(lambda x: F.avg_pool2d(x, 4))
    network.get_parameter("act.slope").requires_grad_(False)
    merge_(network, policy="fold")
    slope, intercept = (network.get_parameter(f"act.{part}") for part in ("slope", "intercept"))
    assert slope.shape == intercept.shape == (4, 1, 1)  # of the rank that it reads
    assert (slope.requires_grad, intercept.requires_grad) == (False, True)


# ---------------------------------------------------------------------- types of buffers


class WithBuffer(nn.Module):
    """Two layers that merge, and a function of their output and of a buffer."""

    def __init__(self, buffer: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(8, 8), nn.Linear(8, 8), function
        self.register_buffer("held", buffer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(F.relu(self.b(self.a(x))), self.held)


def rotated(x: Tensor, frequencies: Tensor) -> Tensor:
    """Rotary angles in float32, whatever the type of the layers."""
    angles = torch.arange(x.shape[1], dtype=torch.float32)[:, None] * frequencies
    return x * torch.cat([angles.cos(), angles.sin()], -1).to(x.dtype)


def test_frequencies_keep_their_type_and_values_among_layers_of_half_precision() -> None:
    frequencies = 10_000 ** (-torch.arange(0, 8, 2).float() / 8)
    torch.manual_seed(0)
    model = WithBuffer(frequencies, rotated).eval().bfloat16()
    model.held = frequencies.clone()
    network = capture(model, torch.randn(2, 16, 8).bfloat16())
    assert merge_(network, policy="always").depth_after == 1
    held = network.get_buffer("held")
    assert held.dtype == torch.float32
    assert torch.equal(held, frequencies)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}


def test_an_output_that_a_buffer_makes_float64_stays_float64() -> None:
    scale = torch.linspace(0.1, 1.0, 8, dtype=torch.float64)
    network = capture(WithBuffer(scale, torch.mul).eval(), torch.randn(2, 8))
    expected = network(torch.ones(2, 8))
    assert merge_(network, policy="always").depth_after == 1
    assert torch.equal(network.get_buffer("held"), scale)
    # assert_close compares the types too
    torch.testing.assert_close(network(torch.ones(2, 8)), expected, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- hooks


def test_a_hook_on_the_network_is_called_after_a_merge_until_it_is_removed() -> None:
    network, calls = two_normed().eval(), []
    handle = network.register_forward_hook(lambda *_: calls.append("called"))
    assert merge_(network, policy="fold").merged
    calls.clear()
    network(images())
    assert calls == ["called"]
    handle.remove()
    network(images())
    assert calls == ["called"]
