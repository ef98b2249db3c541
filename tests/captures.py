"""Captures that many tests look at: made once in a process, and copied, which is cheap."""

from __future__ import annotations

import functools

import torch

from shoal.models import cifar_resnet20
from shoal.network import Network, capture


@functools.cache
def _resnet20() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return capture(cifar_resnet20(width=4).eval(), torch.randn(2, 3, 16, 16))


def resnet20() -> Network:
    """Return a narrow CIFAR ResNet-20 of 16×16 images, untrained, in eval mode."""
    return _resnet20().copy()
