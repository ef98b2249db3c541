"""Networks for small images: CIFAR ResNets, torchvision's as papers change them, one for digits.

The CIFAR ResNets are those of He et al. 2016, section 4.2: 6n + 2 layers with parameter-free
shortcuts. The layer-pruning literature measures on these. Parameters are named as in the weights
published for them: conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from shoal.compat import import_torchvision
from shoal.errors import ConfigError, OptionError
from shoal.models.lookup import models


def check_counts(**counts: int) -> None:
    """Raise `ConfigError` for the first of the named counts that is not a positive integer."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(name, value, "a whole number of at least 1")


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which a parameter-free shortcut runs (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (N, outputs, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2  # a quarter of the new width, as width doubles
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return x


class CifarResNet(nn.Module):
    """A residual network for 32x32 images.

    Args:
        depth: layers with weights, 6n + 2 for n blocks per stage.
        num_classes: outputs.
        in_channels: channels of the input image.
        width: channels of the first stage; the second has twice, the third four times as many.

    Raises:
        ConfigError: the depth is not 6n + 2, or a count is not a positive integer.
    """

    def __init__(
        self, depth: int, num_classes: int = 10, in_channels: int = 3, width: int = 16
    ) -> None:
        check_counts(depth=depth, num_classes=num_classes, in_channels=in_channels, width=width)
        if depth < 8 or (depth - 2) % 6:
            raise ConfigError(f"depth is {depth}: a CIFAR ResNet has 8, 14, 20, … 6n + 2 layers")
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = _conv3x3(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images (N, in_channels, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.linear(x)


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def _of_depth(depth: int, size: str) -> Callable[..., CifarResNet]:
    """Return the function, registered, that builds the CIFAR ResNet of one depth."""

    def build(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> CifarResNet:
        return CifarResNet(depth, num_classes, in_channels, width)

    build.__name__ = build.__qualname__ = f"cifar_resnet{depth}"
    build.__doc__ = f"Return the CIFAR ResNet with {depth} layers: {size} at 32x32."
    models.register(build.__name__)(build)
    return build


cifar_resnet20 = _of_depth(20, "0.27 M parameters, 40.6 M MACs")
cifar_resnet32 = _of_depth(32, "0.46 M parameters, 68.9 M MACs")
cifar_resnet44 = _of_depth(44, "0.66 M parameters, 97.2 M MACs")
cifar_resnet56 = _of_depth(56, "0.85 M parameters, 125.5 M MACs")
cifar_resnet110 = _of_depth(110, "1.73 M parameters, 252.9 M MACs")


@models.register("resnet18_cifar")
def resnet18_cifar(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Return torchvision's ResNet-18 with a 3x3 stem of stride 1 and its max-pooling kept.

    The network of EASIER's CIFAR-10 experiments (Quétu et al. 2024): 140.2 M MACs at 32x32, four
    times fewer than without the max-pooling. Not pretrained.
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


class DigitsBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, with one ReLU module that is called twice."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (N, outputs, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + shortcut)


class DigitsResNet(nn.Module):
    """A stem and six residual blocks in two stages: 13 rectifier calls, 5 identity shortcuts.

    Args:
        num_classes: outputs.
        in_channels: channels of the input image.
        width: channels of the first stage; the second has twice as many.

    Raises:
        ConfigError: a count is not a positive integer.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 16) -> None:
        check_counts(num_classes=num_classes, in_channels=in_channels, width=width)
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(*(DigitsBlock(width, width, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(
            DigitsBlock(width, 2 * width, 2),
            *(DigitsBlock(2 * width, 2 * width, 1) for _ in range(2)),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images (N, in_channels, 8, 8)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(self.avgpool(x).flatten(1))


@models.register("digits_resnet")
def digits_resnet(num_classes: int = 10, in_channels: int = 1, width: int = 16) -> DigitsResNet:
    """Return the small residual network of the embedded demonstration."""
    return DigitsResNet(num_classes, in_channels, width)
