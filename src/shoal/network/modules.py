"""Small modules that a captured network may hold beside PyTorch's own.

Each computes exactly what the captured operation computed, so that capture stays bit-identical.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from typing_extensions import override


class Blend(nn.Module):
    """A rectifier r with a learnable slope α towards a line l: α·l(z) + (1 − α)·r(z).

    Ben Dror et al. 2022 (Layer Folding) have one slope per rectifier, and the identity as its line:
    0 is the rectifier itself, 1 is linear. Of ReLU it is then a PReLU. A slope that is a tensor
    broadcasts against z: one of the shape [channels, 1, 1] is a slope for each channel of images.
    """

    def __init__(
        self, rectifier: nn.Module, slope: float | Tensor = 0.0, linear: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.rectifier = rectifier
        self.linear = nn.Identity() if linear is None else linear
        self.slope = nn.Parameter(torch.as_tensor(slope, dtype=torch.float32).clone())

    def reset_parameters(self) -> None:
        """Become the rectifier."""
        nn.init.zeros_(self.slope)

    def forward(self, z: Tensor) -> Tensor:
        """Map z to the same shape."""
        rectified: Tensor = self.rectifier(z)
        blended: Tensor = rectified + self.slope * (self.linear(z) - rectified)
        return blended


class ByChannel(nn.Module):
    """A rectifier on some channels, and a line on the others.

    `on` says which have the rectifier; it broadcasts against the input, as [channels, 1, 1] does
    against images.
    """

    on: Tensor

    def __init__(self, rectifier: nn.Module, linear: nn.Module, on: Tensor) -> None:
        super().__init__()
        self.rectifier = rectifier
        self.linear = linear
        self.register_buffer("on", on.bool())

    def forward(self, z: Tensor) -> Tensor:
        """Map z to the same shape."""
        return torch.where(self.on, self.rectifier(z), self.linear(z))

    @property
    def kept(self) -> Tensor:
        """Which channels have the rectifier, where its own may be one by channel, too."""
        inner = self.rectifier
        return self.on & inner.kept if isinstance(inner, ByChannel) else self.on


class _Shown(nn.Module):
    """Printed with its attributes."""

    @override
    def extra_repr(self) -> str:
        own = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        return ", ".join(f"{key}={value}" for key, value in own.items() if key != "training")


class Line(nn.Module):
    """A linearized rectifier: the trainable line slope·z + intercept per channel.

    Both have the shape [channels]; `channel_dim` of the input holds these.
    """

    def __init__(self, slope: Tensor, intercept: Tensor, channel_dim: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(slope)
        self.intercept = nn.Parameter(intercept)
        self.channel_dim = channel_dim

    def reset_parameters(self) -> None:
        """Become the identity."""
        nn.init.ones_(self.slope)
        nn.init.zeros_(self.intercept)

    def forward(self, z: Tensor) -> Tensor:
        """Map z, of any shape with `channels` entries along `channel_dim`, to the same shape."""
        if self.slope.dim() > 1:
            return torch.addcmul(self.intercept, z, self.slope)
        shape = [1] * z.dim()
        shape[self.channel_dim] = -1
        return torch.addcmul(self.intercept.view(shape), z, self.slope.view(shape))

    def fix_rank(self, rank: int) -> None:
        """Store the line in the shape that inputs of this rank need, which makes it faster.

        The line then takes no other rank. Reshaping it in each call costs several times what the
        line itself does on small inputs.
        """
        trailing = rank - 1 - self.channel_dim % rank
        if trailing and self.slope.dim() == 1:
            shape = (-1, *[1] * trailing)
            for name in ("slope", "intercept"):
                old = getattr(self, name)
                new = nn.Parameter(old.detach().reshape(shape), requires_grad=old.requires_grad)
                setattr(self, name, new)

    @override
    def extra_repr(self) -> str:
        return f"{self.slope.numel()}, channel_dim={self.channel_dim}"


class StochasticDepth(_Shown):
    """Drops its input with probability `p` while training (Huang et al. 2016), else passes it.

    It draws for each sample on its own ("row" mode) or once for the whole batch; `rescale` divides
    what is kept by 1 − p, so that the expectation stays.
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


class Attention(_Shown):
    """Scaled dot-product attention whose dropout acts only while training."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take what `scaled_dot_product_attention` takes, without `dropout_p`."""
        p = self.dropout if self.training else 0.0
        return nn.functional.scaled_dot_product_attention(*args, **{**kwargs, "dropout_p": p})


class ByMode(_Shown):
    """An ATen operation that stays a function, but for argument `index`, which follows the mode."""

    def __init__(self, operation: OpOverload, index: int, in_eval: Any, in_training: Any) -> None:
        super().__init__()
        self.operation = operation
        self.index = index
        self.in_eval = in_eval
        self.in_training = in_training

    @property
    def name(self) -> str:
        """The operation's name without its namespace."""
        return self.operation._schema.name.removeprefix("aten::")

    def forward(self, *args: Any) -> Any:
        """Take and return what the operation does."""
        given = list(args)
        given[self.index] = self.in_training if self.training else self.in_eval
        return self.operation(*given)


class FrozenBatchNorm(nn.BatchNorm2d):
    """A batch norm of any rank that uses its running statistics in training too."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Map [batch, channels, …] to the same shape."""
        return nn.functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


class Swish(_Shown):
    """z · sigmoid(beta·z) written out, in networks that earlier versions saved."""

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, z: Tensor) -> Tensor:
        """Map any shape to the same shape."""
        return z * torch.sigmoid(z if self.beta == 1.0 else z * self.beta)


class Threshold0(_Shown):
    """clamp(z, min=0, max=high): ReLU written as a clamp, with a clamp's gradient at the ends."""

    def __init__(self, high: float | None) -> None:
        super().__init__()
        self.high = None if high is None else float(high)  # ONNX has no clamp of mixed types

    def forward(self, z: Tensor) -> Tensor:
        """Map any shape to the same shape."""
        return torch.clamp(z, 0.0, self.high)


class Maximum0(nn.Module):
    """maximum(z, 0), whose gradient at a tie is a half, unlike ReLU's."""

    def forward(self, z: Tensor) -> Tensor:
        """Map any shape to the same shape."""
        return torch.maximum(z, z.new_zeros(()))


Step = tuple[OpOverload, dict[str, Any]]


class Formula(nn.Module):
    """A function of each entry alone, as a model's code writes it out in several operations.

    A step has an operation and its arguments by name. There {"step": i} is the value of that step,
    from 1 on, or of the input for 0; {"number": x} a tensor that holds x; {"filled": x} one of the
    input's shape; {"dtype": "input"} the input's type. The last step's value is the function's.
    """

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, z: Tensor) -> Tensor:
        """Map any shape to the same shape."""

        def read(value: Any) -> Any:
            if isinstance(value, list):
                return list(map(read, value))
            if not isinstance(value, dict):
                return value
            ((form, of),) = value.items()
            if form == "step":
                return values[of]
            if form == "dtype":
                return z.dtype
            return z.new_full(z.shape if form == "filled" else (), of)

        values = [z]
        for operation, arguments in self.steps:
            values.append(operation(**{name: read(value) for name, value in arguments.items()}))
        return values[-1]

    @override
    def extra_repr(self) -> str:
        return " → ".join(str(operation) for operation, _ in self.steps)


class OnesChannel(nn.Module):
    """Adds a last channel that is 1 everywhere.

    It carries a bias into a padded convolution, which sees zeros outside the image and ones inside.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, channels, …] to [batch, channels + 1, …]."""
        return torch.cat([x, torch.ones_like(x[:, :1])], 1)


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
        # Not by calling the owner, whose hooks would run for a call that is not its own.
        return nn.functional.prelu(z, self.owner.weight)
