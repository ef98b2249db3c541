"""What blocks cost, counted and measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import shoal
from captures import resnet20
from changed import changed
from shoal.errors import ConfigError, NameNotFoundError
from shoal.measure import count_macs
from shoal.models import cifar_resnet20, cifar_resnet32, cifar_resnet56
from shoal.report.inspection import inspect_network
from shoal.surgery import drop_
from shoal.surgery.drop import block_costs


def with_projections(model: nn.Module) -> nn.Module:
    """Put 1×1 convolutions in the place of the parameter-free shortcuts (option B)."""
    for stage in (model.layer2, model.layer3):
        block = stage[0]
        outputs, inputs = block.conv1.weight.shape[:2]
        block.project = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)
        block._shortcut = block.project.forward
    return model


@pytest.mark.parametrize(
    ("make", "percent", "removable"),
    [
        (cifar_resnet32, 6.826, 13),
        pytest.param(cifar_resnet56, 3.752, 25, marks=pytest.mark.slow),
    ],
)
def test_the_share_of_macs_is_the_published_one(
    make: Callable[[], nn.Module], percent: float, removable: int
) -> None:
    # The published shares are those of ResNets whose two widening shortcuts are 1×1 convolutions.
    x = torch.randn(2, 3, 32, 32)
    network = shoal.capture(with_projections(make().eval()), x, check=False)
    costs = block_costs(network, x, latency=False)
    assert len(costs) == removable
    assert all(abs(cost.macs_percent - percent) < 0.001 for cost in costs.values())


@pytest.mark.long
def test_the_share_of_macs_without_projections() -> None:
    # 7 blocks of 2·16·16·9·32² MACs (equal in all stages), 2 widening ones of three quarters of
    # that, the first convolution and the classifier.
    block = 2 * 16 * 16 * 9 * 32**2
    total = 7 * block + 2 * 3 * block // 4 + 3 * 16 * 9 * 32**2 + 64 * 10
    x = torch.randn(2, 3, 32, 32)
    network = shoal.capture(cifar_resnet20().eval(), x, check=False)
    costs = block_costs(network, x, ["layer1.0", "layer3.2"], latency=False)
    for cost in costs.values():
        assert cost.macs == block
        assert cost.macs_percent == pytest.approx(100 * block / total)


@pytest.mark.long
def test_costs_are_what_dropping_saves() -> None:
    x = torch.randn(2, 3, 16, 16)
    network = resnet20()
    code, state = network.code, {k: v.clone() for k, v in network.state_dict().items()}
    names = ["layer1.0", "layer2.1", "layer3.2"]
    costs = block_costs(network, x, names, repeats=3)
    assert list(costs) == names
    params, macs = sum(p.numel() for p in network.parameters()), count_macs(network, x).total
    for name, cost in costs.items():
        smaller = changed(drop_, network.copy(), name)
        assert cost.params == params - sum(p.numel() for p in smaller.parameters())
        assert cost.params_percent == pytest.approx(100 * cost.params / params)
        assert cost.macs == macs - count_macs(smaller, x).total
        assert cost.latency_ms is not None
        assert cost.latency_percent is not None
        assert cost.to_dict()["macs"] == cost.macs
    assert network.code == code
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


def test_only_the_named_blocks() -> None:
    x = torch.randn(2, 3, 16, 16)
    network = resnet20()
    costs = block_costs(network, x, ["layer3.1"], latency=False)
    assert list(costs) == ["layer3.1"]
    assert costs["layer3.1"].latency_ms is None
    with pytest.raises(NameNotFoundError, match=r"layer3\."):
        block_costs(network, x, ["layer3.9"])
    with pytest.raises(ConfigError, match="shape"):
        block_costs(network, x, ["layer3.0"])


class Gated(nn.Module):
    """A residual block whose output a second input scales."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.b((x + torch.relu(self.a(x))) * gate)


def test_inputs_by_position_and_by_keyword_are_all_given() -> None:
    x, gate = torch.randn(2, 2, 4).unbind()
    network = shoal.capture(Gated().eval(), (x,), example_kwargs={"gate": gate})
    (cost,) = block_costs(network, latency=False).values()
    assert (cost.macs, cost.params) == (16, 16)
    assert cost.macs_percent == pytest.approx(100 * 16 / 24)
    assert inspect_network(network, "gated").macs == 24
