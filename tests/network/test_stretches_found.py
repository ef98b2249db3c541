"""Which stretches of a network one layer can take the place of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from captures import resnet20
from collapse_checks import (
    Model,
    Pair,
    bottlenecks,
    by_name,
    images,
    inverted_residuals,
    plain_convolutions,
    same_after_loading,
    timm_model,
    torchvision_model,
    torchvision_models,
)
from shoal.network import capture
from shoal.network.stretches import Stretch, with_kernel
from shoal.surgery.collapse import collapse_


def test_blocks_of_a_cifar_resnet_keep_their_names_and_change_shape_where_they_do() -> None:
    found = by_name(resnet20())
    assert list(found) == [f"layer{stage}.{i}" for stage in (1, 2, 3) for i in range(3)]
    assert all(stretch.shape.kernel_size == (3, 3) for stretch in found.values())
    down = found["layer2.0"]
    assert (down.shape.in_channels, down.shape.out_channels) == (4, 8)
    assert down.shape.stride == (2, 2)
    assert down.end.meta["shape"] == (None, 8, 8, 8)


@pytest.mark.long
def test_imagenet_resnets_with_basic_blocks_and_bottlenecks() -> None:
    network = capture(bottlenecks(), torch.randn(2, 3, 64, 64), check=False)
    found = by_name(network)
    assert len(found) == 7
    assert found["layer2.0"].shape.stride == (2, 2)
    assert found["layer3.1"].shape.kernel_size == (3, 3)
    # 2,048 channels and nine weights each are more than a fit in 2 GiB can have.
    assert found["layer4.1"].shape.kernel_size == (1, 1)
    assert all(s.shape.columns <= 10_240 for s in found.values())


@pytest.mark.long
def test_inverted_residuals_with_and_without_skip() -> None:
    network = capture(inverted_residuals(), torch.randn(2, 3, 64, 64), check=False)
    found = by_name(network)
    assert list(found) == [f"features.{i}" for i in range(1, 6)]
    assert all(stretch.shape.kernel_size == (3, 3) for stretch in found.values())
    strided = {name for name, stretch in found.items() if stretch.shape.stride == (2, 2)}
    assert strided == {"features.2", "features.4"}


@pytest.mark.long
def test_pairs_of_vgg_do_not_cross_a_pooling() -> None:
    network = capture(plain_convolutions(), torch.randn(2, 3, 64, 64), check=False)
    names = list(by_name(network))
    assert names == [
        "features.4..features.7",
        "features.11..features.14",
        "classifier",
    ]


def small_swin() -> nn.Module:
    library = torchvision_models()
    return library.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=5)


def small_convnext() -> nn.Module:
    library = torchvision_models()
    settings = [
        library.convnext.CNBlockConfig(8, 16, 1),
        library.convnext.CNBlockConfig(16, None, 1),
    ]
    return library.ConvNeXt(settings, num_classes=5)


def small_vit() -> nn.Module:
    return timm_model("vit_tiny_patch16_224", depth=2, img_size=32, patch_size=8)


def small_conv_mlp() -> nn.Module:
    return timm_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "names", "kind"),
    [
        (small_swin, [f"features.{stage}.0.mlp" for stage in (1, 3)], "linear"),
        (
            small_convnext,
            [f"features.{s}.0.block.3..features.{s}.0.block.5" for s in (1, 3)],
            "linear",
        ),
        (small_vit, ["blocks.0.mlp", "blocks.1.mlp"], "linear"),
        (small_conv_mlp, [f"stages.{i}.blocks.0.mlp" for i in range(4)], "conv"),
    ],
    ids=["swin", "convnext", "vit", "convnext with 1x1 convolutions"],
)
def test_mlps_of_transformers_leave_the_skip_outside(
    make: Callable[[], nn.Module], names: list[str], kind: str, tmp_path: Path
) -> None:
    model = make().eval()
    network = capture(model, torch.randn(2, 3, 32, 32)).copy()
    found = by_name(network)
    assert list(found) == names
    for stretch in found.values():
        assert stretch.kind == kind
        assert stretch.shape.in_channels == stretch.shape.out_channels
        assert stretch.shape.kernel_size in ((), (1, 1))
        assert len(stretch.layers) == 2
    data = images(3, 32, 32, batch=32, count=8)
    collapse_(network, names, data)
    assert not network.stretches
    same_after_loading(network, data[0][:2], tmp_path / "saved")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "count", "kind"),
    [
        ("swin_t", "features.1.0.mlp", 12, "linear"),
        ("convnext_tiny", "features.1.0.block.3..features.1.0.block.5", 18, "linear"),
        ("timm:vit_tiny_patch16_224", "blocks.0.mlp", 12, "linear"),
        ("timm:convnext_atto", "stages.0.blocks.0.mlp", 12, "conv"),
    ],
)
def test_every_mlp_of_the_published_transformers_is_found(
    name: str, first: str, count: int, kind: str
) -> None:
    model = timm_model(name[5:]) if name.startswith("timm:") else torchvision_model(name)
    side = 224 if "vit" in name else 64
    found = capture(model, torch.randn(2, 3, side, side), check=False).stretches
    assert (found[0].name, len(found)) == (first, count)
    assert {stretch.kind for stretch in found} == {kind}


def test_a_kernel_grows_until_the_output_has_its_size() -> None:
    network = capture(Model(Pair()), torch.randn(2, 3, 12, 12))
    assert network.stretch("part").shape.kernel_size == (5, 5)
    why = with_kernel(network.stretch("part"), 3)
    assert isinstance(why, str)
    assert "a 3×3 kernel cannot give 'part' its output size" in why
    sized = with_kernel(network.stretch("part"), 7)
    assert isinstance(sized, Stretch)
    assert sized.shape.padding == (1, 1)
