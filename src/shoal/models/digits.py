"""A small residual network for scikit-learn's 8x8 digits: it trains in seconds on a CPU."""

from __future__ import annotations

from torch import Tensor, nn

from shoal.models.cifar import check_counts
from shoal.models.lookup import models

__all__ = ["DigitsResNet", "digits_resnet"]


class DigitsBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, with one ReLU module that is called twice."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
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
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(*(DigitsBlock(width, width, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(
            DigitsBlock(width, 2 * width, 2),
            DigitsBlock(2 * width, 2 * width, 1),
            DigitsBlock(2 * width, 2 * width, 1),
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
