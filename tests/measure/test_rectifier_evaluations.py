"""Rectifier evaluations: the papers' counts, recounted by hand, and the laws a count obeys."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import shoal
import small_runs
from shoal.cli import main
from shoal.measure import benchmark, rectifier_evaluations, rectifier_stages
from shoal.models import import_torchvision, mobilenetv2_cifar, resnet18_cifar
from shoal.network import Network


def captured(model: nn.Module, *shape: int) -> Network:
    return shoal.capture(model.eval(), torch.randn(2, *shape))


def without(model: nn.Module, *paths: str) -> nn.Module:
    for path in paths:
        model.set_submodule(path, nn.Identity())
    return model


class WideBlock(nn.Module):
    """Two pre-activations; its convolutions are 1×1 since only shapes count."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 1, stride)
        self.conv2 = nn.Conv2d(outputs, outputs, 1)
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))
        return z + self.shortcut(x)


def wide_resnet_22_8() -> nn.Module:
    """Return the form of SNL, whose last batch norm has no rectifier."""
    sizes = [(16, 128, 1), (128, 256, 2), (256, 512, 2)]
    blocks = [
        WideBlock(outputs if i else inputs, outputs, 1 if i else stride)
        for inputs, outputs, stride in sizes
        for i in range(3)
    ]
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *blocks, nn.BatchNorm2d(512))


PUBLISHED: list[tuple[Callable[[], nn.Module], int, int, int]] = [
    (lambda: without(resnet18_cifar(), "maxpool"), 32, 17, 557_056),  # SENet, DeepReDuce
    (lambda: without(resnet18_cifar(), "maxpool", "relu"), 32, 16, 491_520),  # SNL, ReLUPruner
    (resnet18_cifar, 32, 17, 188_416),  # EASIER
    (wide_resnet_22_8, 32, 18, 1_359_872),
]


@pytest.mark.long
@pytest.mark.parametrize(("build", "pixels", "sites", "total"), PUBLISHED)
def test_counts_of_the_papers(
    build: Callable[[], nn.Module], pixels: int, sites: int, total: int
) -> None:
    found = rectifier_evaluations(captured(build(), 3, pixels, pixels))
    assert (len(found), sum(found.values())) == (sites, total)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pixels", "sites", "total"),
    [
        ("resnet18", 64, 17, 188_416),  # Tiny-ImageNet: equal to EASIER's at 32 pixels
        ("mobilenetv2_cifar", 32, 35, 1_502_208),
        ("mobilenet_v2", 224, 35, 6_105_792),
        ("vgg16", 32, 15, 284_672),
        ("vgg16", 224, 15, 13_555_712),
        ("swin_t", 32, 12, 116_736),
        ("swin_t", 224, 12, 5_720_064),
    ],
)
def test_counts_of_large_networks(name: str, pixels: int, sites: int, total: int) -> None:
    own = {"mobilenetv2_cifar": mobilenetv2_cifar}
    build = own.get(name) or getattr(import_torchvision().models, name)
    found = rectifier_evaluations(captured(build(), 3, pixels, pixels))
    assert (len(found), sum(found.values())) == (sites, total)


@pytest.mark.long
def test_the_counts_hold_for_any_size_of_image() -> None:
    net = captured(resnet18_cifar(), 3, 32, 32)
    large = torch.empty(1, 3, 224, 224)
    at_224 = rectifier_evaluations(net, large)
    assert sum(at_224.values()) == 9_232_384  # EASIER's network on PACS and VLCS
    assert at_224 == {name: 49 * n for name, n in rectifier_evaluations(net).items()}


@pytest.mark.long
def test_stages_are_those_of_the_papers() -> None:
    net = captured(without(resnet18_cifar(), "maxpool"), 3, 32, 32)
    found = rectifier_stages(net)
    assert [(s.title, len(s.sites), s.total) for s in found] == [
        ("32×32", 5, 327_680), ("16×16", 4, 131_072), ("8×8", 4, 65_536), ("4×4", 4, 32_768),
    ]  # fmt: skip
    assert sum(s.total for s in found[1:]) == 229_376  # DeepReDuce without the first stage
    assert [name for s in found for name in s.sites] == [site.name for site in net.sites]
    shoal.linearize_(net, found[3].sites, "identity")
    after = rectifier_stages(net)
    assert after[3].sites == found[3].sites
    assert [s.total for s in after] == [327_680, 131_072, 65_536, 0]


class Squeezed(nn.Module):
    """Squeeze-and-excitation between two sites of a stage, and a vector behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1), nn.ReLU(),
                                  nn.Conv2d(2, 4, 1), nn.Sigmoid())  # fmt: skip
        self.act = nn.ReLU()
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        x = self.act(self.conv(self.gate(x)[:, :3] * x[:, :3]))
        return self.act(self.fc(x.mean((2, 3))))


def test_a_squeezed_site_belongs_to_the_stage_around_it() -> None:
    net = captured(Squeezed(), 3, 6, 6)
    assert rectifier_evaluations(net) == {"act": 144, "gate.2": 2, "act_1": 144, "act_2": 5}
    assert [(s.title, s.sites, s.total) for s in rectifier_stages(net)] == [
        ("6×6", ("act", "gate.2", "act_1"), 290), ("vectors", ("act_2",), 5),
    ]  # fmt: skip


class Windows(nn.Module):
    """Cuts images into windows, which join the batch, as Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(2, (2, 2)).unflatten(4, (2, 2)).permute(0, 2, 4, 3, 5, 1)
        return nn.functional.gelu(self.fc(x.flatten(0, 2)))


def test_what_joins_the_batch_counts() -> None:
    assert sum(rectifier_evaluations(captured(Windows(), 3, 4, 4)).values()) == 8 * 16


@pytest.mark.parametrize("how", ["line", "identity"])
def test_linearizing_a_site_takes_just_its_share_and_merging_takes_none(how: str) -> None:
    net = small_runs.captured().copy()
    before = rectifier_evaluations(net)
    for name in small_runs.SITES:
        less = net.copy()
        shoal.linearize_(less, name, how, loader=small_runs.digits().train)
        left = rectifier_evaluations(less)
        assert left == {site: n for site, n in before.items() if site != name}
        shoal.merge_(less, policy="always")
        assert rectifier_evaluations(less) == left


def test_counting_leaves_the_network_as_it_was_and_depends_on_no_batch() -> None:
    net = small_runs.captured().copy().train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    found = rectifier_evaluations(net)
    assert found == {"relu": 128, "act": 128, "relu_1": 128, "last": 24}
    assert rectifier_evaluations(net, torch.zeros(7, 1, 8, 8)) == found
    assert net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.long
def test_a_benchmark_counts_what_was_captured() -> None:
    net, inputs = small_runs.captured(), torch.zeros(2, 1, 8, 8)
    few = {"repeats": 2, "min_seconds": 0}
    assert benchmark(net, inputs, **few).relus == 408
    assert benchmark(small_runs.build(), inputs, **few).relus is None


def test_inspect_counts_by_site_and_by_stage(capsys: pytest.CaptureFixture[str]) -> None:
    model = f"{small_runs.__file__}:build"
    given = ["inspect", model, "--input-shape", "1,8,8"]
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "4 rectifier sites, 408 evaluations per sample at 1×8×8" in shown
    assert main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["relus"] == 408
    assert {site["name"]: site["evaluations"] for site in found["sites"]} == {
        "relu": 128, "act": 128, "relu_1": 128, "last": 24,
    }  # fmt: skip
    assert found["stages"] == [
        {"stage": "4×4", "sites": ["relu", "act", "relu_1"], "evaluations": 384},
        {"stage": "vectors", "sites": ["last"], "evaluations": 24},
    ]
