"""What the tests of criteria for blocks are made with: norms as training leaves them, batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shoal.network import Network


def trained_like(model: nn.Module) -> nn.Module:
    """Give norms statistics as training leaves them."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            size = module.num_features
            module.running_mean.copy_(0.3 * torch.randn(size, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(size, generator=generator))
            module.weight.data.copy_(0.5 + torch.rand(size, generator=generator))
            module.bias.data.copy_(0.2 * torch.randn(size, generator=generator))
    return model.double().eval()


def batches(images: Tensor, labels: Tensor, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(size), labels.split(size), strict=True))


def removable(network: Network) -> list[str]:
    return [block.name for block in network.blocks if block.removable]
