from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from shoal.data.augment import Augment
from shoal.data.loader import ImageLoader


def _plain_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 4),
    )


def _norm_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(6),
        nn.Linear(6, 4),
    )


def _images(count: int = 48, **options: object) -> ImageLoader:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 4, (count,), generator=generator)
    given = {"batch_size": 16, "mean": (0.5,), "std": (0.25,), "num_classes": 4, **options}
    return ImageLoader(pixels, labels, **given)


@pytest.fixture
def plain_net() -> Callable[[], nn.Module]:
    """Makes a small network without batch norm, always the same."""
    return _plain_net


@pytest.fixture
def norm_net() -> Callable[[], nn.Module]:
    """Makes a small network with batch norm and dropout, always the same."""
    return _norm_net


@pytest.fixture
def images() -> Callable[..., ImageLoader]:
    """Makes a loader of random images, always the same ones."""
    return _images


@pytest.fixture
def augmented(images: Callable[..., ImageLoader]) -> ImageLoader:
    """A shuffled and augmented training loader."""
    return images(shuffle=True, augment=Augment(flip=True, crop=1), seed=3)
