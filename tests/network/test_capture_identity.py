"""A captured network is the model, to the bit, in eval mode and in training."""

from __future__ import annotations

import pytest
import torch
from network_checks import (
    captured,
    evaluate,
    example,
    names,
    same,
    settled,
    timm_model,
    torchvision_model,
    training_differences,
)

SITES = {"resnet18": 17, "mobilenet_v2": 35, "vgg16_bn": 15, "swin_t": 12, "cifar_resnet20": 19}


def _images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.long
@pytest.mark.parametrize("name", ["cifar_resnet20", "torchvision:mobilenet_v2"])
def test_a_network_is_its_model_to_the_bit(name: str) -> None:
    model, network = example(name)
    assert same(evaluate(model, _images(32)), evaluate(network, _images(32)))
    assert set(network.state_dict()) == set(model.state_dict())
    assert training_differences(model, network, _images(32)) == []
    assert len(network.sites) == SITES[name.rpartition(":")[2]]
    assert not network.opaque
    assert not network.notes


def test_sites_are_named_by_their_module_or_the_function() -> None:
    found = names(example("cifar_resnet20")[1])
    assert found[:4] == ["relu", "layer1.0.relu", "layer1.0.relu_1", "layer1.1.relu"]


@pytest.mark.long
def test_a_module_called_twice_is_two_sites() -> None:
    network = captured(settled(torchvision_model("resnet18")), _images(32))
    assert names(network)[:3] == ["relu", "layer1.0.relu", "layer1.0.relu_1"]
    assert len(network.sites) == SITES["resnet18"]


@pytest.mark.slow
def test_the_deeper_cifar_network_has_the_papers_sites() -> None:
    assert len(example("cifar_resnet56")[1].sites) == 55


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
