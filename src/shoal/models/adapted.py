"""torchvision's networks with the changes that papers make to them for 32x32 images."""

from __future__ import annotations

from torch import nn

from shoal.compat import import_torchvision
from shoal.models.catalog import check_counts, models

__all__ = ["mobilenetv2_cifar", "resnet18_cifar"]


@models.register("resnet18_cifar")
def resnet18_cifar(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Return torchvision's ResNet-18 with a 3x3 stem of stride 1 and its max-pooling kept.

    The network of EASIER's CIFAR-10 experiments (Quétu et al. 2024): 140.2 M MACs at 32x32, four
    times fewer than without the max-pooling. Not pretrained.

    Raises:
        ConfigError: a count is not a positive integer.
        ShoalError: torchvision is not installed.
    """
    check_counts(num_classes=num_classes, in_channels=in_channels)
    model = import_torchvision().models.resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=1, bias=False)
    _init_as_torchvision(model.conv1)
    return model


@models.register("mobilenetv2_cifar")
def mobilenetv2_cifar(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Return torchvision's MobileNetV2 with stride 1 in the stem and in the second stage.

    The network of EASIER's CIFAR-10 experiments (Quétu et al. 2024): an eighth of the image's
    resolution at the end instead of a thirty-second. Not pretrained.

    Raises:
        ConfigError: a count is not a positive integer.
        ShoalError: torchvision is not installed.
    """
    check_counts(num_classes=num_classes, in_channels=in_channels)
    stages = [  # expansion, channels, blocks, stride of the first block
        [1, 16, 1, 1],
        [6, 24, 2, 1],
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
    model = import_torchvision().models.MobileNetV2(
        num_classes=num_classes, inverted_residual_setting=stages
    )
    model.features[0][0] = nn.Conv2d(in_channels, 32, kernel_size=3, padding=1, bias=False)
    _init_as_torchvision(model.features[0][0])
    return model


def _init_as_torchvision(conv: nn.Conv2d) -> None:
    """Initialise a replaced convolution as both of torchvision's networks do theirs."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
