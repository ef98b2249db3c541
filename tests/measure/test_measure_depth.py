"""Depth: the numbers that gave the networks their names, and what counts as a layer."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from shoal.errors import ConfigError
from shoal.measure import depth
from shoal.models import cifar_resnet20, import_torchvision
from shoal.network import capture


def exported(model: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    return torch.export.export(model.eval(), inputs, strict=False).module(check_guards=False)


@pytest.mark.parametrize(
    ("name", "layers"), [("resnet18", 18), ("resnet50", 50), ("vgg16_bn", 16), ("densenet121", 121)]
)
def test_networks_have_the_depth_of_their_name(name: str, layers: int) -> None:
    with torch.device("meta"):
        model = getattr(import_torchvision().models, name)()
    assert depth(fx.symbolic_trace(model)) == layers


@pytest.mark.long
def test_a_captured_network_has_a_depth() -> None:
    assert depth(capture(cifar_resnet20(), torch.zeros(2, 3, 32, 32))) == 20


def test_functional_layers_count_as_modules_do() -> None:
    model = cifar_resnet20()
    assert depth(exported(model, torch.zeros(2, 3, 32, 32))) == 20


class Functional(nn.Module):
    """Four layers on the longest path, and much that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)  # 2
        self.out = nn.Parameter(torch.randn(8, 8))
        self.kernel = nn.Parameter(torch.randn(4, 8, 1))
        self.positions = nn.Linear(2, 8)
        self.norm = nn.LayerNorm(8)
        self.rectifier = nn.PReLU(5)
        self.register_buffer("grid", torch.randn(5, 2))
        self.register_buffer("fixed", torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.positions(self.grid)  # sees no input: no layer on a path from it
        x = self.attend(x, x, x, need_weights=False)[0]
        x = self.rectifier(self.norm(x)) @ self.fixed  # a constant is no weight
        x = x @ x.transpose(1, 2) @ x  # nor is the input itself
        x = x @ (self.out / self.out.norm())  # 1: a computed weight
        y = torch.zeros(x.shape[0], 4, 6)
        y[:, :, :5] = nn.functional.conv1d(x.transpose(1, 2), self.kernel)  # 1: written in place
        return y


def test_weights_make_layers_however_they_are_applied() -> None:
    assert depth(exported(Functional(), torch.randn(3, 5, 8))) == 4


def test_the_longest_path_decides() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.long = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
            self.short = nn.Linear(4, 4)
            self.unused = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.unused(self.unused(self.long(x)))
            return self.long(x) + self.short(x)

    assert depth(fx.symbolic_trace(Fork())) == 2


def test_a_network_without_layers_has_depth_zero() -> None:
    assert depth(fx.symbolic_trace(nn.ReLU())) == 0


def test_without_a_graph_there_is_no_depth() -> None:
    with pytest.raises(ConfigError, match=r"depth of a Linear .*shoal\.capture"):
        depth(nn.Linear(3, 3))
