"""What a module holds beside its layer stays as long as the forward pass reads it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shoal


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.linspace(-1, 1, 8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x - self.shift) + self.shift


class Remembered(nn.Module):
    """Holds a tensor that is no part of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.linspace(-1, 1, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x - self.shift) + self.shift


class ShiftedPReLU(nn.PReLU):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.linspace(-1, 1, 8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x + self.table, 0.1, self.training)


class NormedConv(nn.Conv2d):
    """A convolution with its norm, its rectifier and a gain within."""

    def __init__(self) -> None:
        super().__init__(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.gain = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(super().forward(x))) * self.gain


def captured(middle: nn.Module) -> shoal.Network:
    model = nn.Sequential(nn.Linear(4, 8), middle, nn.Linear(8, 3))
    return shoal.capture(model.eval(), torch.randn(2, 4))


def test_a_site_beside_a_buffer_can_be_linearized() -> None:
    for middle in (Shifted(), Remembered(), ShiftedPReLU()):
        net = captured(middle)
        keys = set(net.state_dict())
        (site,) = net.sites
        shoal.linearize_(net, site.name, "identity")
        x = torch.randn(2, 4)
        z = net.get_submodule("0")(x)
        z = z + torch.linspace(-1, 1, 8) if isinstance(middle, ShiftedPReLU) else z
        assert torch.allclose(net(x), net.get_submodule("2")(z), atol=1e-6)
        assert set(net.state_dict()) == keys - {"1.weight"}  # a buffer that is not saved stays so


def test_another_rectifier_keeps_what_the_graph_reads_beside_it() -> None:
    net = captured(ShiftedPReLU())
    shoal.swap_rectifiers_(net, "gelu")
    x = torch.randn(2, 4)
    z = F.gelu(net.get_submodule("0")(x)) + torch.linspace(-1, 1, 8)
    assert torch.allclose(net(x), net.get_submodule("2")(z), atol=1e-6)


def test_merging_keeps_the_buffer_of_a_module_whose_dropout_goes() -> None:
    model = nn.Sequential(
        nn.Linear(4, 8), Positions(), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)
    )
    net = shoal.capture(model.eval(), torch.randn(2, 6, 4))
    shoal.linearize_(net, "3", "identity")
    assert shoal.merge_(net, policy="always").depth_after == 2
    assert "1.table" in net.state_dict()


def test_folding_keeps_the_parameter_of_a_layer_that_holds_its_norm() -> None:
    model = nn.Sequential(NormedConv(), nn.Flatten(), nn.Linear(8 * 36, 2))
    for norm in (model[0].bn,):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 8, 8)
    net = shoal.capture(model.eval(), x).copy()
    shoal.merge_(net, policy="always")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert torch.allclose(net(x), model(x), atol=1e-5)
