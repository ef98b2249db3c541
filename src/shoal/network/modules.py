"""Small modules that a captured network may hold beside PyTorch's own.

Each computes exactly what the captured operation computed, so that capture stays bit-identical.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["Attention", "Line", "Maximum0", "SharedPReLU", "StochasticDepth", "Swish"]


class Line(nn.Module):
    """A linearized rectifier: the trainable per-channel line slope·z + intercept.

    Args:
        slope: shape [channels].
        intercept: shape [channels].
        channel_dim: the dimension of the input that holds the channels.
    """

    def __init__(self, slope: Tensor, intercept: Tensor, channel_dim: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(slope)
        self.intercept = nn.Parameter(intercept)
        self.channel_dim = channel_dim

    def forward(self, z: Tensor) -> Tensor:
        """Map z, of any shape with `channels` entries along `channel_dim`, to the same shape."""
        shape = [1] * z.dim()
        shape[self.channel_dim] = -1
        return torch.addcmul(self.intercept.view(shape), z, self.slope.view(shape))

    def extra_repr(self) -> str:
        """Return what `print` shows between the parentheses."""
        return f"{self.slope.numel()}, channel_dim={self.channel_dim}"


class StochasticDepth(nn.Module):
    """Drops its input with probability `p` while training (Huang et al. 2016), else passes it.

    Args:
        p: the probability of dropping.
        per_sample: draw for each sample on its own ("row" mode), else once for the whole batch.
        rescale: divide what is kept by 1 − p, so that the expectation stays.
    """

    def __init__(self, p: float, *, per_sample: bool = True, rescale: bool = True) -> None:
        super().__init__()
        self.p = p
        self.per_sample = per_sample
        self.rescale = rescale

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, …] to the same shape."""
        if not self.training or self.p == 0.0:
            return x
        shape = [x.shape[0] if self.per_sample else 1] + [1] * (x.dim() - 1)
        noise = x.new_empty(shape).bernoulli_(1.0 - self.p)
        if self.rescale and self.p < 1.0:
            noise.div_(1.0 - self.p)
        return x * noise

    def extra_repr(self) -> str:
        """Return what `print` shows between the parentheses."""
        return f"p={self.p}, per_sample={self.per_sample}"


class Attention(nn.Module):
    """Scaled dot-product attention whose dropout acts only while training."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take what `scaled_dot_product_attention` takes, without `dropout_p`."""
        p = self.dropout if self.training else 0.0
        return nn.functional.scaled_dot_product_attention(*args, **{**kwargs, "dropout_p": p})

    def extra_repr(self) -> str:
        """Return what `print` shows between the parentheses."""
        return f"dropout={self.dropout}"


class Swish(nn.Module):
    """z · sigmoid(beta·z) written out; with beta = 1 it is SiLU, with 1.702 the fast GELU."""

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, z: Tensor) -> Tensor:
        """Map any shape to the same shape."""
        return z * torch.sigmoid(z if self.beta == 1.0 else z * self.beta)

    def extra_repr(self) -> str:
        """Return what `print` shows between the parentheses."""
        return f"beta={self.beta}"


class Maximum0(nn.Module):
    """maximum(z, 0), whose gradient at a tie is a half, unlike ReLU's."""

    def forward(self, z: Tensor) -> Tensor:
        """Map any shape to the same shape."""
        return torch.maximum(z, z.new_zeros(()))


class SharedPReLU(nn.Module):
    """A further call of one PReLU, which stays the owner of the weight.

    The owner is not registered as a child: the weight keeps its one name in `state_dict`.
    """

    def __init__(self, owner: nn.PReLU) -> None:
        super().__init__()
        self.__dict__["_owner"] = owner

    @property
    def owner(self) -> nn.PReLU:
        """The module that holds the weight."""
        return cast(nn.PReLU, self.__dict__["_owner"])

    def forward(self, z: Tensor) -> Tensor:
        """Map [batch, channels, …] to the same shape."""
        return self.owner(z)
