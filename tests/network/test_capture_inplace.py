"""In-place operations become out-of-place ones where that changes no value, and stay where not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from network_checks import Call, captured, kinds
from torch import Tensor, nn

from shoal.network import Network, capture


def convolution(forward: Callable[..., Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return Call(
        forward, a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(4, 4, 3, padding=1),
        bn=nn.BatchNorm2d(4),
    )  # fmt: skip


def images() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def in_place(network: Network) -> list[str]:
    targets = [str(n.target) for n in network.graph.nodes if n.op == "call_function"]
    return [target for target in targets if target.split(".")[1].endswith("_")]


def test_a_residual_sum_in_place_becomes_a_block() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = F.relu_(self.a(x))
        y = self.bn(self.b(x))
        y += x
        return F.relu_(y)

    network = captured(convolution(forward), images())
    assert in_place(network) == []
    assert kinds(network) == ["relu", "relu"]
    assert [block.removable for block in network.blocks] == [True]


def test_the_shortcut_of_an_in_place_rectifier_sees_its_output() -> None:
    # nn.ReLU(inplace=True) also changes what the variable held: x is rectified below.
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.b(F.relu_(x))
        return y + x

    network = captured(convolution(forward), images())
    assert in_place(network) == []


def test_a_view_that_is_read_later_keeps_the_operation_in_place() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.a(x)
        flat = x.flatten(1)
        F.relu_(x)
        return self.b(x).flatten(1) + flat

    network = captured(convolution(forward), images(), train=False)
    assert in_place(network) == ["aten.relu_.default"]
    assert network.sites == []
    assert "memory that is read elsewhere" in network.opaque[0].reason


def test_writing_through_a_view_changes_the_whole() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.a(x) * 1.0
        F.relu_(x[:, :2])
        return self.b(x)

    captured(convolution(forward), images())


def test_a_dropout_that_hands_its_input_through_is_an_alias() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.a(x)
        y = F.dropout(x, 0.5, self.training)
        F.relu_(x)
        return self.b(y)

    captured(convolution(forward), images(), train=False)


def test_assignment_into_a_new_tensor_is_kept_and_right() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.a(x)
        mask = torch.zeros_like(x)
        mask[:, :, ::2] = 1.0
        mask[:, 0] = x[:, 1]
        return self.b(x * mask)

    captured(convolution(forward), images())


def test_a_network_does_not_overwrite_its_input() -> None:
    model = nn.Sequential(nn.SiLU(inplace=True), nn.Conv2d(3, 4, 3))
    network = capture(model, images()).eval()
    x = images()
    expected = model(x.clone())
    assert torch.equal(network(x), expected)
    assert torch.equal(x, images())


CHAINS = {
    "mul_": lambda x: x.mul_(2.0), "add_ scalar": lambda x: x.add_(1.0),
    "sub_": lambda x: x.sub_(x.mean()), "div_": lambda x: x.div_(3.0),
    "sigmoid_": torch.sigmoid_, "tanh_": torch.tanh_, "clamp_": lambda x: x.clamp_(0.0, 1.0),
    "masked_fill_": lambda x: x.masked_fill_(x > 0.5, -1.0), "exp_": torch.exp_,
    "neg_": torch.neg_, "abs_": torch.abs_, "square_": torch.square_, "pow_": lambda x: x.pow_(2),
    "zero_": lambda x: x.zero_(), "fill_": lambda x: x.fill_(0.5),
    "copy_": lambda x: x.copy_(x.flip(0)), "iadd float to double": lambda x: x.add_(x.double()),
    "lerp_": lambda x: x.lerp_(torch.ones_like(x), 0.3), "t_": lambda x: x.transpose_(2, 3),
    "unsqueeze_": lambda x: x.unsqueeze_(1).squeeze_(1), "detach_": lambda x: x.detach_() + 1,
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_any_in_place_method_keeps_its_meaning(name: str) -> None:
    model = convolution(lambda self, x: CHAINS[name](self.a(x) * 1.0) + self.a(x))
    captured(model, images(), train=name != "detach_")
