"""Residual blocks are found in the graph: which there are, which can go, and why others cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from network_checks import Call, example, timm_model, torchvision_model
from torch import Tensor, nn

from shoal.importance import score
from shoal.network import Block, capture


def blocks_of(model: nn.Module, *shape: int) -> list[Block]:
    return capture(model, torch.randn(2, *shape), check=False).blocks


def removable(blocks: list[Block]) -> list[str]:
    return [block.name for block in blocks if block.removable]


# ---------------------------------------------------------------------- known networks


@pytest.mark.parametrize(
    ("name", "count", "total"),
    [
        ("cifar_resnet20", 7, 9),
        pytest.param("cifar_resnet32", 13, 15, marks=pytest.mark.slow),
        pytest.param("cifar_resnet56", 25, 27, marks=pytest.mark.slow),
        pytest.param("cifar_resnet110", 52, 54, marks=pytest.mark.slow),
    ],
)
def test_cifar_networks(name: str, count: int, total: int) -> None:
    blocks = example(name)[1].blocks
    assert [block.name for block in blocks][:2] == ["layer1.0", "layer1.1"]
    assert len(blocks) == total
    assert len(removable(blocks)) == count
    fixed = [block for block in blocks if not block.removable]
    assert [block.name for block in fixed] == ["layer2.0", "layer3.0"]
    assert "16×32×32" in fixed[0].reason
    assert "32×16×16" in fixed[0].reason


def test_a_blocks_layers_and_sites_are_named() -> None:
    block = example("cifar_resnet20")[1].blocks[0]
    assert (block.name, block.removable, block.reason) == ("layer1.0", True, "")
    assert block.layers == ("layer1.0.conv1", "layer1.0.conv2")
    assert block.sites == ("layer1.0.relu",)


@pytest.mark.slow
def test_resnet50_keeps_its_downsampling_blocks() -> None:
    blocks = blocks_of(torchvision_model("resnet50"), 3, 32, 32)
    assert len(blocks) == 16
    assert len(removable(blocks)) == 12
    fixed = [block.name for block in blocks if not block.removable]
    assert fixed == [f"layer{i}.0" for i in (1, 2, 3, 4)]


@pytest.mark.long
def test_mobilenet_v2() -> None:
    blocks = example("torchvision:mobilenet_v2")[1].blocks
    assert (len(removable(blocks)), len(blocks)) == (10, 10)
    assert blocks[0].name == "features.3"


@pytest.mark.slow
def test_swin_has_attention_and_mlp_blocks() -> None:
    blocks = blocks_of(torchvision_model("swin_t"), 3, 64, 64)
    assert len(removable(blocks)) == 24
    assert sum(name.endswith("attn") for name in removable(blocks)) == 12
    assert sum(name.endswith("mlp") for name in removable(blocks)) == 12


def test_a_transformers_branches_are_named_by_what_computes_them() -> None:
    blocks = blocks_of(timm_model("vit_tiny_patch16_224", img_size=32, depth=2), 3, 32, 32)
    names = ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"]
    assert removable(blocks) == [block.name for block in blocks] == names


@pytest.mark.slow
def test_vit_and_convnext() -> None:
    assert len(removable(blocks_of(timm_model("vit_tiny_patch16_224"), 3, 224, 224))) == 24
    assert len(removable(blocks_of(timm_model("convnext_atto"), 3, 64, 64))) == 12


def test_networks_without_shortcuts_have_no_blocks() -> None:
    assert (
        blocks_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), 3, 8, 8) == []
    )


# ---------------------------------------------------------------------- laws


def linear(n: int = 4, m: int = 4) -> nn.Module:
    return nn.Linear(n, m)


def test_parallel_branches_can_both_go() -> None:
    model = Call(lambda self, x: x + self.f(x) + self.g(x), f=linear(), g=linear())
    blocks = blocks_of(model, 4)
    assert removable(blocks) == ["f", "g"]
    assert [block.layers for block in blocks] == [("f",), ("g",)]


def test_the_order_of_the_sum_does_not_matter() -> None:
    for forward in (lambda self, x: x + self.f(x), lambda self, x: self.f(x) + x):
        (block,) = blocks_of(Call(forward, f=linear()), 4)
        assert block.removable
        assert block.layers == ("f",)


def test_nested_blocks_are_all_found() -> None:
    inner = Call(lambda self, x: x + self.a(x), a=linear())
    outer = Call(lambda self, x: x + self.inner(self.b(x)), inner=inner, b=linear())
    blocks = blocks_of(nn.Sequential(outer), 4)
    assert sorted(removable(blocks)) == ["0", "0.inner"]
    layers = {block.name: block.layers for block in blocks}
    assert layers == {"0": ("0.b", "0.inner.a"), "0.inner": ("0.inner.a",)}


def test_a_scaled_branch_is_a_block() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return x + self.gamma * self.f(x)

    model = Call(forward, f=linear())
    model.register_parameter("gamma", nn.Parameter(torch.ones(4)))
    assert len(removable(blocks_of(model, 4))) == 1


def test_a_branch_whose_inside_is_used_elsewhere_stays() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        inside = F.relu(self.f(x))
        return self.head(x + self.g(inside)) + inside.mean()

    model = Call(forward, f=linear(), g=linear(), head=linear(4, 2))
    blocks = [b for b in blocks_of(model, 4) if "f" in b.layers and "head" not in b.layers]
    assert [block.removable for block in blocks] == [False]
    assert "used outside" in blocks[0].reason


def test_a_branch_that_reads_another_tensor_stays() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        first = self.stem(x)
        second = self.other(first)
        return second + self.f(torch.cat([second, first], 1))

    model = Call(forward, stem=linear(), other=linear(), f=linear(8, 4))
    assert removable(blocks_of(model, 4)) == []


def test_a_branch_that_reads_another_input_is_told_as_that() -> None:
    model = Call(lambda self, x, t: self.g(x + self.f(x * t)), f=linear(), g=linear())
    network = capture(model, (torch.randn(2, 4), torch.randn(2, 4)), check=False)
    (block,) = network.blocks
    assert not block.removable
    assert "also reads" in block.reason
    assert block.layers == ("f",)

    def gated(self: nn.Module, x: Tensor) -> Tensor:
        gate = self.gate(x)
        z = self.stem(x)
        return z + self.f(z) * gate

    (block,) = blocks_of(Call(gated, gate=linear(), stem=linear(), f=linear()), 4)
    assert "also reads" in block.reason
    assert block.layers == ("f",)


def test_a_shortcut_through_any_operand_of_a_sum_is_found() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return ((self.a(x) + self.b(x)) + x) + self.c(x)

    blocks = blocks_of(Call(forward, a=linear(), b=linear(), c=linear()), 4)
    assert [block.layers for block in blocks if block.removable] == [("a", "b"), ("c",)]


@pytest.mark.parametrize(
    "branch",
    [
        lambda self, x: x @ self.weight.t(),
        lambda self, x: torch.einsum("bi,oi->bo", x, self.weight),
        lambda self, x: F.linear(x, (self.weight - self.weight.mean()) / self.weight.std()),
        lambda self, x: F.linear(x, self.weight, self.weight[0] * 2),
        lambda self, x: self.weight[0] * x.mean(1, keepdim=True),
    ],
)
def test_a_branch_may_compute_with_any_function_of_a_parameter(
    branch: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    model = Call(lambda self, x: x + torch.tanh(branch(self, x)))
    model.register_parameter("weight", nn.Parameter(torch.randn(4, 4)))
    (block,) = blocks_of(model, 4)
    assert block.removable


def test_arithmetic_without_a_parameter_is_no_branch() -> None:
    model = Call(lambda self, x: self.f(x + 0.04 * x**3), f=linear())
    assert blocks_of(model, 4) == []


class StandardConv(nn.Conv2d):
    """A convolution with its weight standardised in the forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (self.weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, padding=1)


@pytest.mark.parametrize("bias", [False, True])
def test_weights_that_are_computed_count_as_the_branchs(bias: bool) -> None:
    def conv() -> nn.Module:
        return StandardConv(4, 4, 3, bias=bias)

    first = Call(lambda self, x: x + self.b(F.relu(self.a(F.relu(x)))), a=conv(), b=conv())
    second = Call(lambda self, x: x + self.b(F.relu(self.a(F.relu(x)))), a=conv(), b=conv())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), first, second, nn.Flatten(), nn.Linear(144, 5))
    network = capture(model.eval(), torch.randn(2, 3, 8, 8), check=False)
    assert removable(network.blocks) == ["1", "2"]
    scores = score(network, (), "l1", scope="global")
    for name, block in (("1", first), ("2", second)):
        weights = torch.cat([block.a.weight.flatten(), block.b.weight.flatten()])
        assert scores[name] == pytest.approx(float(weights.detach().abs().mean()))
    data = [(torch.randn(6, 3, 8, 8), torch.arange(6) % 5)]
    snip = score(network, data, "snip")
    F.cross_entropy(model(data[0][0]), data[0][1]).backward()
    for name, block in (("1", first), ("2", second)):
        expected = sum(float((p * p.grad).detach().abs().sum()) for p in block.parameters())
        assert snip[name] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_timm_networks_with_computed_weights_or_pooling_mixers() -> None:
    assert len(removable(blocks_of(timm_model("resnetv2_50x1_bit"), 3, 64, 64))) == 12
    blocks = blocks_of(timm_model("poolformerv2_s12"), 3, 64, 64)
    assert (len(removable(blocks)), len(blocks)) == (8, 24)  # the other shortcuts are scaled
    assert all("not the identity" in block.reason for block in blocks if not block.removable)


def test_a_broadcasting_sum_stays() -> None:
    model = Call(lambda self, x: x.mean(1, keepdim=True) + self.f(x), f=linear())
    assert removable(blocks_of(model, 4)) == []
    model = Call(lambda self, x: self.a(x) + self.f(self.a(x)), a=linear(4, 1), f=linear(1, 4))
    assert removable(blocks_of(model, 4)) == []


def test_a_shortcut_that_computes_stays() -> None:
    model = Call(lambda self, x: F.relu(x) + self.g(self.f(x)), f=linear(), g=linear())
    (block,) = blocks_of(model, 4)
    assert not block.removable
    assert "not the identity" in block.reason


def test_an_addition_into_a_part_of_another_tensor_stays() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.conv(x)
        half = x[:, :4]
        half += self.d(half).relu()
        return self.f(x)

    model = Call(forward, conv=nn.Conv2d(3, 8, 1), d=nn.Conv2d(4, 4, 1), f=nn.Conv2d(8, 2, 1))
    (block,) = blocks_of(model, 3, 5, 5)
    assert (block.name, block.removable) == ("d", False)
    assert "writes into memory that is read elsewhere" in block.reason


def test_a_branch_that_shares_its_layer_stays() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = x + self.f(x)
        return x + self.f(x)

    blocks = blocks_of(Call(forward, f=linear()), 4)
    assert removable(blocks) == []
    assert all("used elsewhere" in block.reason for block in blocks)


def test_a_sum_of_two_outputs_is_no_block() -> None:
    model = Call(lambda self, x, y: self.f(x) + self.g(y), f=linear(), g=linear())
    network = capture(model, (torch.randn(2, 4), torch.randn(2, 4)))
    assert network.blocks == []


def test_a_tensor_plus_itself_is_no_block() -> None:
    assert blocks_of(Call(lambda self, x: x + x + 1), 4) == []


def test_names_are_unique_and_stable_after_a_copy() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + F.relu(self.f(x))
        return x

    network = capture(Call(forward, f=linear()), torch.randn(2, 4))
    names = [block.name for block in network.blocks]
    assert len(set(names)) == 3
    assert [block.name for block in network.copy().blocks] == names


def test_a_blocks_nodes_are_its_part_of_the_graph() -> None:
    _, network = example("cifar_resnet20")
    for nodes in network.blocks:
        assert nodes.branch[-1] is nodes.output
        assert nodes.output in nodes.addition.all_input_nodes
        assert nodes.shortcut in nodes.addition.all_input_nodes
        assert nodes.start not in nodes.branch
        if nodes.removable:
            assert nodes.shortcut is nodes.start
