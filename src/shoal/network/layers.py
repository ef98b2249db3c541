"""Which ordinary layer each ATen call with parameters is.

Functions that make the `nn` layer as a call says it; the operator table holds them. The layer's own
tensors are never allocated (they are made on the meta device): it receives the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from shoal.network.modules import FrozenBatchNorm
from shoal.network.ops import register_op

__all__ = ["LayerMaker"]

aten = torch.ops.aten

# Takes the call's arguments by name (tensors in place of nodes where they are the model's) and the
# original module the call came from; returns the layer, or why there is none.
LayerMaker = Callable[[Mapping[str, Any], nn.Module | None], nn.Module | str]


def _layer(*ops: OpOverload) -> Callable[[LayerMaker], LayerMaker]:
    def bind(make: LayerMaker) -> LayerMaker:
        for op in ops:
            register_op(op, layer=make)
        return make

    return bind


def _has(tensor: object) -> bool:
    return isinstance(tensor, Tensor)


def _tuple(value: Any, n: int) -> Any:
    """Return `n` integers, or a padding's name."""
    if isinstance(value, str):
        return value
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(values * n if len(values) == 1 else values)


_CONV_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED_TYPES = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@_layer(
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
    aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
)  # fmt: skip
def _conv(a: Mapping[str, Any], original: nn.Module | None) -> nn.Module | str:
    weight, groups = a["weight"], a["groups"]
    n = weight.dim() - 2
    transposed = "output_padding" in a
    make: Any = (_TRANSPOSED_TYPES if transposed else _CONV_TYPES)[n - 1]
    channels = [weight.shape[1] * groups, weight.shape[0]]
    keys = ("stride", "padding", "output_padding", "dilation")
    return make(
        *(reversed(channels) if transposed else channels),
        tuple(weight.shape[2:]),
        groups=groups,
        bias=_has(a["bias"]),
        device="meta",
        **{key: _tuple(a[key], n) for key in keys if key in a},
    )


@_layer(aten.linear.default)
def _linear(a: Mapping[str, Any], original: nn.Module | None) -> nn.Module | str:
    if a["weight"].dim() != 2:
        return "its weight is not a matrix"
    out_features, in_features = a["weight"].shape
    return nn.Linear(in_features, out_features, bias=_has(a["bias"]), device="meta")


@_layer(aten.batch_norm.default)
def _batch_norm(a: Mapping[str, Any], original: nn.Module | None) -> nn.Module | str:
    tracked = _has(a["running_mean"])
    affine = _has(a["weight"])
    features = next((a[k].numel() for k in ("weight", "running_mean") if _has(a[k])), None)
    if features is None:
        return "a batch norm without parameters or running statistics"
    if affine != _has(a["bias"]):
        return "a batch norm with a scale and no shift"
    if tracked and a["training"]:
        return "a batch norm that uses batch statistics in eval mode but keeps running ones"
    if tracked and not a["in_training"]:
        return FrozenBatchNorm(features, eps=a["eps"], affine=affine, device="meta")
    momentum = a["momentum"]
    make: type[nn.Module] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}.get(
        a["input_dim"], nn.BatchNorm2d
    )
    if isinstance(original, nn.modules.batchnorm._BatchNorm):
        momentum = original.momentum  # None, a running average, cannot be read off the call
        if isinstance(original, nn.SyncBatchNorm):
            make = nn.SyncBatchNorm
    return make(
        features,
        eps=a["eps"],
        momentum=momentum,
        affine=affine,
        track_running_stats=tracked,
        device="meta",
    )


@_layer(aten.instance_norm.default)
def _instance_norm(a: Mapping[str, Any], original: nn.Module | None) -> nn.Module | str:
    tracked = _has(a["running_mean"])
    if tracked and (a["use_input_stats"] or not a["in_training"]):
        return "an instance norm that does not follow the training flag"
    make = {3: nn.InstanceNorm1d, 5: nn.InstanceNorm3d}.get(a["input_dim"], nn.InstanceNorm2d)
    return make(
        a["running_mean" if tracked else "weight"].numel(),
        eps=a["eps"],
        momentum=a["momentum"],
        affine=_has(a["weight"]),
        track_running_stats=tracked,
        device="meta",
    )


@_layer(aten.layer_norm.default)
def _layer_norm(a: Mapping[str, Any], original: nn.Module | None) -> nn.Module | str:
    return nn.LayerNorm(
        list(a["normalized_shape"]),
        eps=a["eps"],
        elementwise_affine=_has(a["weight"]),
        bias=_has(a["bias"]),
        device="meta",
    )


@_layer(aten.group_norm.default)
def _group_norm(a: Mapping[str, Any], original: nn.Module | None) -> nn.Module | str:
    if not _has(a["weight"]):
        return "a group norm without parameters"
    return nn.GroupNorm(a["num_groups"], a["weight"].numel(), eps=a["eps"], device="meta")


@_layer(aten.embedding.default)
def _embedding(a: Mapping[str, Any], original: nn.Module | None) -> nn.Module | str:
    if a["scale_grad_by_freq"] or a["sparse"]:
        return "an embedding with sparse or scaled gradients"
    count, width = a["weight"].shape
    padding = a["padding_idx"]
    return nn.Embedding(count, width, padding_idx=padding if padding >= 0 else None, device="meta")
