"""A smooth stand-in for the entropy of rectifier states, to train with.

The entropy counts signs, which have no gradient; Quétu et al. 2024 leave a differentiable proxy to
future work (section 4.4). Here a sigmoid takes the sign's place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shoal.network import Network


def soft_entropy(z: Tensor, channel_dim: int = 1, tau: float = 0.1) -> Tensor:
    """Return the mean over channels of the binary entropy of how often each is ON, in bits, `[]`.

    P(ON) of a channel is the mean of sigmoid(z / (τ·s)) over all else, where s is the deviation of
    all of z: a network cannot lower the entropy by scaling z. For τ → 0 it tends to the entropy
    that counts states, if no entry is exactly 0.

    Args:
        z: the input of a rectifier, with channels along `channel_dim`.
        channel_dim: of z.
        tau: the width τ of the step from OFF to ON, in deviations.
    """
    if z.dtype not in (torch.float32, torch.float64):
        z = z.float()
    rows = z.movedim(channel_dim, -1).flatten(0, -2)  # [positions, channels]
    # A norm has the gradient 0 where nothing varies, a square root none.
    deviation = torch.linalg.vector_norm(rows - rows.mean()) / math.sqrt(rows.numel())
    deviation = deviation.clamp(min=torch.finfo(z.dtype).tiny)
    on = torch.sigmoid(rows / (tau * deviation)).mean(0)
    # Away from 0 and 1, where the logarithm has no finite gradient.
    edge = torch.finfo(z.dtype).eps
    on = on.clamp(edge, 1.0 - edge)
    return -(on * on.log() + (1.0 - on) * (1.0 - on).log()).mean() / math.log(2.0)


def site_entropy(network: Network, tau: float) -> Callable[[nn.Module, Mapping[str, Any]], Tensor]:
    """Return the mean `soft_entropy` of sites, as a penalty to train with: `shoal.training.fit`."""
    dims = {site.name: site.channel_dim for site in network.sites}

    def mean(trained: nn.Module, values: Mapping[str, Any]) -> Tensor:
        found = [soft_entropy(z, dims[name], tau) for name, z in values.items()]
        return torch.stack(found).mean()

    return mean
