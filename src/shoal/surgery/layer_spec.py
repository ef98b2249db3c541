"""Describe the layers that surgery puts in, so that a plan can make them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from shoal.errors import PlanError
from shoal.network.modules import Line, OnesChannel

__all__ = ["layer_from_spec", "layer_spec"]

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


def layer_from_spec(spec: Mapping[str, Any]) -> nn.Module:
    """Make a layer again from its description, with weights still to be loaded.

    Raises:
        PlanError: the description is damaged or unknown.
    """
    options: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in spec.items()
    }
    kind = options.pop("type", None)
    try:
        if kind in _CONVS:
            return _CONVS[kind](**options)
        if kind == "linear":
            return nn.Linear(**options)
        if kind == "line":
            channels = options["channels"]
            return Line(torch.ones(channels), torch.zeros(channels), options["channel_dim"])
        if kind == "ones":
            return OnesChannel()
        if kind == "batch_norm2d":
            return nn.BatchNorm2d(**options)
    except (TypeError, KeyError, ValueError) as error:
        raise PlanError(f"the plan describes a layer that cannot be made: {spec}") from error
    raise PlanError(
        f"the plan holds a layer of the kind '{kind}', unknown to this version of shoal"
    )
