"""A captured network is the model, to the bit, in eval mode and in training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from network_checks import captured, names, settled, timm_model, torchvision_model
from torch import nn

from shoal.models import cifar_resnet20, cifar_resnet56
from shoal.network import capture

SITES = {"resnet18": 17, "mobilenet_v2": 35, "vgg16_bn": 15, "swin_t": 12}


def _images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("make", "sites"), [(cifar_resnet20, 19), (cifar_resnet56, 55)])
def test_the_cifar_networks_have_the_papers_sites(
    make: Callable[[], nn.Module], sites: int
) -> None:
    assert len(capture(make(), _images(8)).sites) == sites


def test_a_cifar_network_is_captured_to_the_bit() -> None:
    torch.manual_seed(0)
    network = captured(settled(cifar_resnet20()), _images(16))
    assert not network.opaque
    assert not network.notes
    assert names(network)[:4] == ["relu", "layer1.0.relu", "layer1.0.relu_1", "layer1.1.relu"]


@pytest.mark.parametrize(("name", "size"), [("resnet18", 32), ("mobilenet_v2", 32)])
def test_torchvision_models_are_captured_to_the_bit(name: str, size: int) -> None:
    network = captured(settled(torchvision_model(name)), _images(size))
    assert len(network.sites) == SITES[name]
    assert not network.opaque


def test_a_module_called_twice_is_two_sites() -> None:
    network = capture(torchvision_model("resnet18"), _images(32))
    assert names(network)[:3] == ["relu", "layer1.0.relu", "layer1.0.relu_1"]


def test_a_timm_transformer_is_captured_to_the_bit() -> None:
    model = timm_model("vit_tiny_patch16_224", img_size=32, depth=3)
    network = captured(model, _images(32))
    assert names(network) == [f"blocks.{i}.mlp.act" for i in range(3)]
    assert not network.opaque


SLOW = {
    "torchvision:resnet18": 64, "torchvision:mobilenet_v2": 64, "torchvision:vgg16_bn": 32,
    "torchvision:swin_t": 224, "torchvision:densenet121": 64, "torchvision:efficientnet_b0": 64,
    "torchvision:mobilenet_v3_small": 64, "torchvision:convnext_tiny": 64,
    "torchvision:vit_b_32": 224, "torchvision:shufflenet_v2_x0_5": 64, "torchvision:resnet50": 64,
    "timm:vit_tiny_patch16_224": 224, "timm:convnext_atto": 64, "timm:regnetx_002": 64,
    "timm:deit3_small_patch16_224": 224, "timm:mobilevit_xxs": 64, "timm:mixer_s32_224": 224,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_well_known_models_are_captured_to_the_bit(name: str) -> None:
    library, _, model_name = name.partition(":")
    make = torchvision_model if library == "torchvision" else timm_model
    network = captured(settled(make(model_name)), _images(SLOW[name]))
    assert not network.notes
    if model_name in SITES:
        assert len(network.sites) == SITES[model_name]
