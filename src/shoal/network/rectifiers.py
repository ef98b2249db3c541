"""Which ATen calls are rectifiers, and the module that computes each of them.

A rectifier is an activation with an OFF region (negative inputs are held near zero, or shrunk) and
an ON region. `hardtanh(-1, 1)`, sigmoids and the clamp inside a hard sigmoid are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from shoal.network.modules import Maximum0, Swish, Threshold0
from shoal.network.nodes import bound_arguments, shape_of
from shoal.network.ops import op_of, register_op

__all__ = ["RECTIFIER_KINDS", "Rectifier", "recognize", "rectifier"]

aten = torch.ops.aten

RECTIFIER_KINDS = (
    "relu", "relu6", "hardtanh", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu",
    "silu", "hardswish", "mish", "softplus",
)  # fmt: skip


@dataclass(frozen=True)
class Rectifier:
    """A recognised rectifier: its kind, the node it reads and the module that computes it.

    `module` is None for PReLU, whose module the caller makes around the weight at `weight`.
    """

    kind: str
    input: fx.Node
    module: nn.Module | None
    weight: fx.Node | None = None


def _clipped(node: fx.Node, low: object, high: object, module: nn.Module) -> Rectifier | None:
    if low != 0 or isinstance(high, fx.Node) or _is_hard_sigmoid(node, high):
        return None
    kind = "relu" if high is None else "relu6" if high == 6 else "hardtanh"
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return Rectifier(kind, source, module)


def _is_hard_sigmoid(node: fx.Node, high: object) -> bool:
    """Whether the clip is the inner part of clip(z + 3, 0, 6) / 6, which is a gate.

    The division may come after the gate was multiplied with what it gates.
    """
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


Handler = Callable[[fx.Node, dict[str, Any], Callable[[fx.Node], Tensor | None]], Rectifier | None]


def _handles(*ops: str) -> Callable[[Handler], Handler]:
    def bind(handler: Handler) -> Handler:
        for op in ops:
            packet_name, _, overload = op.partition(".")
            packet = getattr(aten, packet_name, None)
            if packet is not None and overload in packet.overloads():
                register_op(getattr(packet, overload), rectifier=handler)
        return handler

    return bind


def rectifier(kind: str, make: Callable[[dict[str, Any]], nn.Module]) -> Handler:
    """Return what the table needs of an operation that is a rectifier of its first operand.

    Args:
        kind: what its sites are called.
        make: gives the module that computes it, of the call's arguments by name.
    """

    def handle(node: fx.Node, a: dict[str, Any], _constant: object) -> Rectifier:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return Rectifier(kind, source, make(a))

    return handle


def _simple(op: str, kind: str, make: Callable[[dict[str, Any]], nn.Module]) -> None:
    _handles(op)(rectifier(kind, make))


_simple("relu.default", "relu", lambda a: nn.ReLU())
_simple("leaky_relu.default", "leaky_relu", lambda a: nn.LeakyReLU(a["negative_slope"]))
_simple("selu.default", "selu", lambda a: nn.SELU())
_simple("celu.default", "celu", lambda a: nn.CELU(a["alpha"]))
_simple("gelu.default", "gelu", lambda a: nn.GELU(a["approximate"]))
_simple("silu.default", "silu", lambda a: nn.SiLU())
_simple("hardswish.default", "hardswish", lambda a: nn.Hardswish())
_simple("mish.default", "mish", lambda a: nn.Mish())
_simple("softplus.default", "softplus", lambda a: nn.Softplus(a["beta"], a["threshold"]))


@_handles("relu6.default")
def _relu6(node: fx.Node, a: dict[str, Any], _constant: object) -> Rectifier | None:
    return _clipped(node, 0, 6, nn.ReLU6())


@_handles("rrelu.default")
def _rrelu(node: fx.Node, a: dict[str, Any], _constant: object) -> Rectifier | None:
    lower, upper = a["lower"], a["upper"]
    if a["training"]:
        return None  # random in eval mode too
    if node.meta.get("in_training", True):
        return Rectifier("rrelu", a["self"], nn.RReLU(lower, upper))
    return Rectifier("rrelu", a["self"], nn.LeakyReLU((lower + upper) / 2))


@_handles("elu.default")
def _elu(node: fx.Node, a: dict[str, Any], _constant: object) -> Rectifier | None:
    if a["scale"] != 1 or a["input_scale"] != 1:
        return None
    return Rectifier("elu", a["self"], nn.ELU(a["alpha"]))


@_handles("prelu.default")
def _prelu(node: fx.Node, a: dict[str, Any], _constant: object) -> Rectifier:
    return Rectifier("prelu", a["self"], None, weight=a["weight"])


@_handles("hardtanh.default")
def _hardtanh(node: fx.Node, a: dict[str, Any], _constant: object) -> Rectifier | None:
    low, high = a["min_val"], a["max_val"]
    module = nn.ReLU6() if (low, high) == (0, 6) else nn.Hardtanh(low, high)
    return _clipped(node, low, high, module)


@_handles("clamp.default")
def _clamp(node: fx.Node, a: dict[str, Any], _constant: object) -> Rectifier | None:
    return _clipped(node, a["min"], a["max"], Threshold0(a["max"]))


@_handles("clamp_min.default")
def _clamp_min(node: fx.Node, a: dict[str, Any], _constant: object) -> Rectifier | None:
    return _clipped(node, a["min"], None, Threshold0(None))


@_handles("threshold.default")
def _threshold(node: fx.Node, a: dict[str, Any], _constant: object) -> Rectifier | None:
    if a["threshold"] != 0 or a["value"] != 0:
        return None
    return Rectifier("relu", a["self"], nn.Threshold(0.0, 0.0))


@_handles("maximum.default", "max.other", "clamp_min.Tensor")
def _maximum(
    node: fx.Node, a: dict[str, Any], constant: Callable[[fx.Node], Tensor | None]
) -> Rectifier | None:
    first, second = a["self"], a.get("other", a.get("min"))
    for source, other in ((first, second), (second, first)):
        if isinstance(other, fx.Node) and _is_zero(other, constant):
            assert isinstance(source, fx.Node)
            if shape_of(source) != shape_of(node):
                return None  # the zeros widen it, or change its type
            return Rectifier("relu", source, Maximum0())
    return None


_COPIES = (
    aten.lift_fresh_copy.default, aten.detach.default, aten.clone.default, aten.to.device,
    aten.to.dtype, aten.to.dtype_layout,
)  # fmt: skip


def _is_zero(node: fx.Node, constant: Callable[[fx.Node], Tensor | None]) -> bool:
    """Whether the node is a tensor of zeros that the forward pass makes or holds."""
    while node.target in _COPIES:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    if node.target in (aten.zeros_like.default, aten.zeros.default, aten.new_zeros.default):
        return True
    if node.target in (aten.scalar_tensor.default,):
        return bool(node.args[0] == 0)
    if node.target in (aten.full.default, aten.full_like.default):
        return bool(node.args[1] == 0)
    value = constant(node)
    return value is not None and value.numel() > 0 and not bool(value.any())


@_handles("mul.Tensor")
def _swish(node: fx.Node, a: dict[str, Any], _constant: object) -> Rectifier | None:
    """Recognise z · sigmoid(beta·z); with any other f, sigmoid(f(z)) · z is a gate."""
    for z, gate in ((a["self"], a["other"]), (a["other"], a["self"])):
        if not (isinstance(z, fx.Node) and isinstance(gate, fx.Node)):
            continue
        if gate.target is not aten.sigmoid.default or len(gate.users) != 1:
            continue
        inner = gate.args[0]
        if inner is z:
            return Rectifier("silu", z, Swish())
        if not isinstance(inner, fx.Node) or inner.target is not aten.mul.Tensor:
            continue
        beta = inner.args[1]
        if inner.args[0] is z and isinstance(beta, (int, float)):
            kind = "gelu" if abs(beta - 1.702) < 1e-3 else "silu"
            return Rectifier(kind, z, Swish(beta))
    return None


def recognize(
    node: fx.Node, constant: Callable[[fx.Node], Tensor | None] = lambda _: None
) -> Rectifier | None:
    """Return the rectifier that `node` computes, or None.

    Args:
        node: a call of an ATen operation, out of place.
        constant: gives the tensor that a `get_attr` node of a constant holds, else None.
    """
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return None
    handler = op_of(node.target).rectifier
    value = node.meta.get("val")
    if handler is None or (isinstance(value, Tensor) and not value.is_floating_point()):
        return None  # a clamp of indices is no activation
    return handler(node, bound_arguments(node), constant)
