"""Describe the layers that surgery puts in, for the plan."""

from __future__ import annotations

from typing import Any

from torch import nn

from shoal.network.modules import Line, OnesChannel

__all__ = ["layer_spec"]

_CONVS = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
_CONV_OPTIONS = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation",
                 "groups")  # fmt: skip


def layer_spec(layer: nn.Module) -> dict[str, Any]:
    """Return a layer's type and shape as JSON values.

    Raises:
        TypeError: the layer is none of those that surgery puts in.
    """
    for name, kind in _CONVS.items():
        if type(layer) is kind:
            options = {key: getattr(layer, key) for key in _CONV_OPTIONS}
            plain = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
            return {"type": name, **plain, "bias": layer.bias is not None}
    if isinstance(layer, nn.Linear):
        shape = {"in_features": layer.in_features, "out_features": layer.out_features}
        return {"type": "linear", **shape, "bias": layer.bias is not None}
    if isinstance(layer, Line):
        channels = layer.slope.numel()
        return {"type": "line", "channels": channels, "channel_dim": layer.channel_dim}
    if isinstance(layer, OnesChannel):
        return {"type": "ones"}
    if type(layer) is nn.BatchNorm2d:
        return {"type": "batch_norm2d", "num_features": layer.num_features}
    raise TypeError(f"no description for a {type(layer).__name__}")
