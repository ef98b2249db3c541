from __future__ import annotations

import pytest
import torch
from block_networks import trained_like
from torch import Tensor, nn

import shoal
from shoal.models import cifar_resnet20
from shoal.network import Network

SAMPLES = 24


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A narrow CIFAR ResNet-20 in float64, always the same."""
    torch.manual_seed(0)
    return trained_like(cifar_resnet20(width=4))


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Random images for it, always the same."""
    return torch.randn(SAMPLES, 3, 12, 12, generator=torch.Generator().manual_seed(2)).double()


@pytest.fixture(scope="module")
def labels() -> Tensor:
    """Their classes."""
    return torch.arange(SAMPLES) % 10


@pytest.fixture(scope="module")
def network(model: nn.Module, images: Tensor) -> Network:
    """Its capture; copy it before you change it."""
    return shoal.capture(model, images[:2])
