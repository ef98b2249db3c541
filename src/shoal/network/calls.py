"""Which module each ATen call is raised to: layers with parameters, and rectifiers.

The layer's own tensors are never allocated (they are made on the meta device): it receives the
model's. A rectifier is an activation with an OFF region (negative inputs are held near zero, or
shrunk) and an ON region; `hardtanh(-1, 1)`, sigmoids and the clamp inside a hard sigmoid are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from shoal.network.flow import bound_arguments, shape_of
from shoal.network.modules import FrozenBatchNorm, Maximum0, Threshold0
from shoal.network.ops import handles, op_of, register_op
from shoal.network.written import number_of

aten = torch.ops.aten

# ---------------------------------------------------------------------- layers

# Each maker takes the call's arguments by name (tensors in place of nodes where they are the
# model's) and the original module the call came from; it returns the layer, or why there is none.


def _has(tensor: object) -> bool:
    return isinstance(tensor, Tensor)


def _tuple(value: Any, n: int) -> Any:
    """Return `n` integers, or a padding's name."""
    if isinstance(value, str):
        return value
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(values * n if len(values) == 1 else values)


@handles(
    "layer",
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
    aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
)  # fmt: skip
def _conv(a: Mapping[str, Any], original: nn.Module | None) -> nn.Module | str:
    weight, groups = a["weight"], a["groups"]
    n = weight.dim() - 2
    transposed = "output_padding" in a
    make: Callable[..., nn.Module] = getattr(nn, f"Conv{'Transpose' * transposed}{n}d")
    inward, outward = weight.shape[1] * groups, weight.shape[0]
    channels = (outward, inward) if transposed else (inward, outward)
    keys = ("stride", "padding", "output_padding", "dilation")
    sizes = {key: _tuple(a[key], n) for key in keys if key in a}
    kernel, bias = tuple(weight.shape[2:]), _has(a["bias"])
    return make(*channels, kernel, groups=groups, bias=bias, device="meta", **sizes)


@handles("layer", aten.linear.default)
def _linear(a: Mapping[str, Any], original: nn.Module | None) -> nn.Module | str:
    if a["weight"].dim() != 2:
        return "its weight is not a matrix"
    out_features, in_features = a["weight"].shape
    return nn.Linear(in_features, out_features, bias=_has(a["bias"]), device="meta")


@handles("layer", aten.batch_norm.default)
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
    make: Callable[..., nn.Module] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}.get(
        a["input_dim"], nn.BatchNorm2d
    )
    if isinstance(original, nn.modules.batchnorm._BatchNorm):
        momentum = original.momentum  # None, a running average, cannot be read off the call
        if isinstance(original, nn.SyncBatchNorm):
            make = nn.SyncBatchNorm
    return make(features, a["eps"], momentum, affine, tracked, device="meta")


@handles("layer", aten.instance_norm.default)
def _instance_norm(a: Mapping[str, Any], original: nn.Module | None) -> nn.Module | str:
    tracked, affine = _has(a["running_mean"]), _has(a["weight"])
    if affine != _has(a["bias"]):
        return "an instance norm with a scale and no shift, or the reverse"
    if tracked and (a["use_input_stats"] or not a["in_training"]):
        return "an instance norm that does not follow the training flag"
    make = {3: nn.InstanceNorm1d, 5: nn.InstanceNorm3d}.get(a["input_dim"], nn.InstanceNorm2d)
    features = a["running_mean" if tracked else "weight"].numel()
    return make(features, a["eps"], a["momentum"], affine, tracked, device="meta")


@handles("layer", aten.layer_norm.default)
def _layer_norm(a: Mapping[str, Any], original: nn.Module | None) -> nn.Module | str:
    affine, bias = _has(a["weight"]), _has(a["bias"])
    return nn.LayerNorm(list(a["normalized_shape"]), a["eps"], affine, bias, device="meta")


@handles("layer", aten.group_norm.default)
def _group_norm(a: Mapping[str, Any], original: nn.Module | None) -> nn.Module | str:
    if not (_has(a["weight"]) and _has(a["bias"])):
        return "a group norm without a scale or a shift"
    return nn.GroupNorm(a["num_groups"], a["weight"].numel(), eps=a["eps"], device="meta")


@handles("layer", aten.embedding.default)
def _embedding(a: Mapping[str, Any], original: nn.Module | None) -> nn.Module | str:
    if a["scale_grad_by_freq"] or a["sparse"]:
        return "an embedding with sparse or scaled gradients"
    count, width = a["weight"].shape
    padding = a["padding_idx"]
    return nn.Embedding(count, width, padding_idx=padding if padding >= 0 else None, device="meta")


# ---------------------------------------------------------------------- rectifiers


@dataclass(frozen=True)
class Rectifier:
    """A recognised rectifier."""

    kind: str
    input: fx.Node  # what it reads
    module: nn.Module | None  # what computes it; None for PReLU, made around the weight at `weight`
    weight: fx.Node | None = None


Constants = Mapping[str, Tensor]  # by path: those that the forward pass holds
Handler = Callable[[fx.Node, dict[str, Any], Constants], Rectifier | None]


def rectifier(kind: str, make: Callable[[dict[str, Any]], nn.Module | None]) -> Handler:
    """Return what the table needs of an operation that is a rectifier of its first operand.

    Its sites are of that `kind`; `make` gives the module that computes it, of the call's arguments
    by name, or None where these make it something else.
    """

    def handle(node: fx.Node, a: dict[str, Any], _constants: object) -> Rectifier | None:
        source: Any = node.args[0]
        module = make(a)
        return None if module is None else Rectifier(kind, source, module)

    return handle


_SIMPLE: dict[str, Callable[[dict[str, Any]], nn.Module | None]] = {
    "relu": lambda a: nn.ReLU(),
    "leaky_relu": lambda a: nn.LeakyReLU(a["negative_slope"]),
    "elu": lambda a: nn.ELU(a["alpha"]) if a["scale"] == a["input_scale"] == 1 else None,
    "selu": lambda a: nn.SELU(),
    "celu": lambda a: nn.CELU(a["alpha"]),
    "gelu": lambda a: nn.GELU(a["approximate"]),
    "silu": lambda a: nn.SiLU(),
    "hardswish": lambda a: nn.Hardswish(),
    "mish": lambda a: nn.Mish(),
    "softplus": lambda a: nn.Softplus(a["beta"], a["threshold"]),
    "threshold": lambda a: nn.Threshold(0.0, 0.0) if a["threshold"] == a["value"] == 0 else None,
}
for _name, _make in _SIMPLE.items():
    _kind = "relu" if _name == "threshold" else _name
    register_op(getattr(aten, _name).default, rectifier=rectifier(_kind, _make))


@handles("rectifier", aten.relu6.default, aten.hardtanh.default, aten.clamp.default,
         aten.clip.default, aten.clamp_min.default)  # fmt: skip
def _clip(node: fx.Node, a: dict[str, Any], _constants: object) -> Rectifier | None:
    own = {"min": 0, "max": 6} if node.target is aten.relu6.default else {}
    low: Any
    high: Any
    low, high = ({**own, **a}.get(key, a.get(f"{key}_val")) for key in ("min", "max"))
    high = None if high == math.inf else high
    if low != 0 or isinstance(high, fx.Node) or _is_hard_sigmoid(node, high):
        return None
    module: nn.Module = Threshold0(high)
    if node.target in (aten.relu6.default, aten.hardtanh.default):  # no gradient at their ends
        module = nn.ReLU() if high is None else nn.ReLU6() if high == 6 else nn.Hardtanh(low, high)
    kind = "relu" if high is None else "relu6" if high == 6 else "hardtanh"
    return Rectifier(kind, a["self"], module)


def _is_hard_sigmoid(node: fx.Node, high: object) -> bool:
    """Whether the clip is the inner part of clip(z + 3, 0, 6) / 6, which is a gate."""
    # The division may come after the gate was multiplied with what it gates.
    shifted = node.args[0]
    if high != 6 or len(node.users) != 1 or not isinstance(shifted, fx.Node):
        return False
    user = next(iter(node.users))
    if _is_sixth(user, node):
        return True
    gated = user.target is aten.mul.Tensor and shifted.target is aten.add.Tensor
    if not gated or shifted.args[1] != 3 or len(user.users) != 1:
        return False
    return _is_sixth(next(iter(user.users)), user)


def _is_sixth(node: fx.Node, of: fx.Node) -> bool:
    scale: Any = node.args[1] if len(node.args) > 1 else None
    if node.args[:1] != (of,) or not isinstance(scale, (int, float)):
        return False
    if node.target in (aten.div.Tensor, aten.div.Scalar):
        return scale == 6
    return node.target in (aten.mul.Tensor, aten.mul.Scalar) and abs(scale * 6 - 1) < 1e-6


@handles("rectifier", aten.rrelu.default)
def _rrelu(node: fx.Node, a: dict[str, Any], _constants: object) -> Rectifier | None:
    lower, upper = a["lower"], a["upper"]
    if a["training"]:
        return None  # random in eval mode too
    follows = node.meta.get("in_training", True)
    module = nn.RReLU(lower, upper) if follows else nn.LeakyReLU((lower + upper) / 2)
    return Rectifier("rrelu", a["self"], module)


@handles("rectifier", aten.prelu.default)
def _prelu(node: fx.Node, a: dict[str, Any], _constants: object) -> Rectifier:
    return Rectifier("prelu", a["self"], None, weight=a["weight"])


@handles("rectifier", aten.maximum.default, aten.max.other, aten.clamp_min.Tensor)
def _maximum(node: fx.Node, a: dict[str, Any], constants: Constants) -> Rectifier | None:
    first, second = a["self"], a["other" if "other" in a else "min"]
    for source, other in ((first, second), (second, first)):
        if isinstance(other, fx.Node) and number_of(other, constants) == 0:
            if shape_of(source) != shape_of(node):
                return None  # the zeros widen it, or change its type
            return Rectifier("relu", source, Maximum0())
    return None


def recognize(node: fx.Node, constants: Constants) -> Rectifier | None:
    """Return the rectifier that `node`, a call out of place, computes, or None."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return None
    handler = op_of(node.target).rectifier
    value = node.meta.get("val")
    if handler is None or (isinstance(value, Tensor) and not value.is_floating_point()):
        return None  # a clamp of indices is no activation
    found: Rectifier | None = handler(node, bound_arguments(node), constants)
    return found
