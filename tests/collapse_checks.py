"""What the tests of stretches and of collapsing share: data, models, and saving and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shoal import compat
from shoal.errors import ShoalError
from shoal.merge.loading import load
from shoal.network import Network
from shoal.network.saving import save
from shoal.network.stretches import Stretch


def images(*size: int, count: int = 3, batch: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, *size, generator=generator) for _ in range(count)]


def torchvision_models() -> Any:
    torch.manual_seed(0)
    try:
        return compat.import_torchvision().models
    except ShoalError as error:
        pytest.skip(str(error))


def torchvision_model(name: str) -> nn.Module:
    return getattr(torchvision_models(), name)(weights=None).eval()


def bottlenecks() -> nn.Module:
    """A ResNet-50 with one block in its first stage but one, and two in each other."""
    library = torchvision_models().resnet
    return library.ResNet(library.Bottleneck, [2, 1, 2, 2]).eval()


def inverted_residuals() -> nn.Module:
    """The first three stages of a MobileNetV2."""
    stages = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
    return torchvision_models().MobileNetV2(inverted_residual_setting=stages).eval()


def plain_convolutions() -> nn.Module:
    """A VGG with batch norms and few channels."""
    library = torchvision_models().vgg
    layers = library.make_layers([8, "M", 8, 8, "M", 16, 16, "M"], batch_norm=True)
    model = library.VGG(layers, num_classes=5, init_weights=False)
    model.classifier = nn.Sequential(
        nn.Linear(16 * 7 * 7, 32), nn.ReLU(), nn.Dropout(),
        nn.Linear(32, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 5),
    )  # fmt: skip
    return model.eval()


def timm_model(name: str, **options: Any) -> nn.Module:
    try:
        library = compat.import_timm()
    except ShoalError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    return library.create_model(name, pretrained=False, **options).eval()


def by_name(network: Network) -> dict[str, Stretch]:
    return {stretch.name: stretch for stretch in network.stretches}


class Pair(nn.Module):
    """Two convolutions and a rectifier that is never OFF: one 5x5 convolution in all."""

    def __init__(self, stride: int = 1, skip: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=stride, bias=False)
        self.relu = nn.LeakyReLU(1.0)
        self.conv2 = nn.Conv2d(4, 5, 3)
        kernel = 3 + 2 * stride  # of both convolutions together
        self.shortcut = nn.Conv2d(3, 5, kernel, stride=stride) if skip else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.relu(self.conv1(x)))
        return out if self.shortcut is None else out + self.shortcut(x)


class Model(nn.Module):
    """A part between a first layer and a head."""

    def __init__(self, part: nn.Module, width: int = 5) -> None:
        super().__init__()
        self.part = part
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.part(x)).mean((2, 3)))


def same_after_loading(network: Network, x: Tensor, folder: Path) -> None:
    save(network, folder)
    again = load(folder)
    assert again.plan.operations == network.plan.operations
    with torch.no_grad():
        assert torch.equal(again(x), network.eval()(x))
    assert set(again.state_dict()) == set(network.state_dict())
