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


Constant = Callable[[fx.Node], Tensor | None]
Handler = Callable[[fx.Node, dict[str, Any], Constant], Rectifier | None]


def rectifier(kind: str, make: Callable[[dict[str, Any]], nn.Module | None]) -> Handler:
    """Return what the table needs of an operation that is a rectifier of its first operand.

    Args:
        kind: what its sites are called.
        make: gives the module that computes it, of the call's arguments by name; None where these
            make it something else.
    """

    def handle(node: fx.Node, a: dict[str, Any], _constant: object) -> Rectifier | None:
        source: Any = node.args[0]
        module = make(a)
        return None if module is None else Rectifier(kind, source, module)

    return handle


def _elu(a: dict[str, Any]) -> nn.Module | None:
    return nn.ELU(a["alpha"]) if a["scale"] == a["input_scale"] == 1 else None


def _threshold(a: dict[str, Any]) -> nn.Module | None:
    return nn.Threshold(0.0, 0.0) if a["threshold"] == a["value"] == 0 else None


_SIMPLE: dict[str, Callable[[dict[str, Any]], nn.Module | None]] = {
    "relu": lambda a: nn.ReLU(),
    "leaky_relu": lambda a: nn.LeakyReLU(a["negative_slope"]),
    "elu": _elu,
    "selu": lambda a: nn.SELU(),
    "celu": lambda a: nn.CELU(a["alpha"]),
    "gelu": lambda a: nn.GELU(a["approximate"]),
    "silu": lambda a: nn.SiLU(),
    "hardswish": lambda a: nn.Hardswish(),
    "mish": lambda a: nn.Mish(),
    "softplus": lambda a: nn.Softplus(a["beta"], a["threshold"]),
}
for _kind, _make in _SIMPLE.items():
    register_op(getattr(aten, _kind).default, rectifier=rectifier(_kind, _make))
register_op(aten.threshold.default, rectifier=rectifier("relu", _threshold))


def _handles(*ops: OpOverload) -> Callable[[Handler], Handler]:
    def bind(handler: Handler) -> Handler:
        for op in ops:
            register_op(op, rectifier=handler)
        return handler

    return bind


@_handles(
    aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default
)  # fmt: skip
def _clip(node: fx.Node, a: dict[str, Any], _constant: object) -> Rectifier | None:
    own = {"min": 0, "max": 6} if node.target is aten.relu6.default else {}
    low: Any
    high: Any
    low, high = ({**own, **a}.get(key, a.get(f"{key}_val")) for key in ("min", "max"))
    if low != 0 or isinstance(high, fx.Node) or _is_hard_sigmoid(node, high):
        return None
    module: nn.Module = Threshold0(high)
    if node.target in (aten.relu6.default, aten.hardtanh.default):
        module = nn.ReLU6() if high == 6 else nn.Hardtanh(low, high)
    kind = "relu" if high is None else "relu6" if high == 6 else "hardtanh"
    return Rectifier(kind, a["self"], module)


@_handles(aten.rrelu.default)
def _rrelu(node: fx.Node, a: dict[str, Any], _constant: object) -> Rectifier | None:
    lower, upper = a["lower"], a["upper"]
    if a["training"]:
        return None  # random in eval mode too
    if node.meta.get("in_training", True):
        return Rectifier("rrelu", a["self"], nn.RReLU(lower, upper))
    return Rectifier("rrelu", a["self"], nn.LeakyReLU((lower + upper) / 2))


@_handles(aten.prelu.default)
def _prelu(node: fx.Node, a: dict[str, Any], _constant: object) -> Rectifier:
    return Rectifier("prelu", a["self"], None, weight=a["weight"])


@_handles(aten.maximum.default, aten.max.other, aten.clamp_min.Tensor)
def _maximum(node: fx.Node, a: dict[str, Any], constant: Constant) -> Rectifier | None:
    first, second = a["self"], a["other" if "other" in a else "min"]
    for source, other in ((first, second), (second, first)):
        if isinstance(other, fx.Node) and _is_zero(other, constant):
            if shape_of(source) != shape_of(node):
                return None  # the zeros widen it, or change its type
            return Rectifier("relu", source, Maximum0())
    return None


_COPIES = (
    aten.lift_fresh_copy.default, aten.detach.default, aten.clone.default, aten.to.device,
    aten.to.dtype, aten.to.dtype_layout,
)  # fmt: skip


def _is_zero(node: fx.Node, constant: Constant) -> bool:
    """Whether the node is a tensor of zeros that the forward pass makes or holds."""
    while node.target in _COPIES:
        node = node.all_input_nodes[0]
    if node.target in (aten.zeros_like.default, aten.zeros.default, aten.new_zeros.default):
        return True
    if node.target is aten.scalar_tensor.default:
        return bool(node.args[0] == 0)
    if node.target in (aten.full.default, aten.full_like.default):
        return bool(node.args[1] == 0)
    value = constant(node)
    return value is not None and value.numel() > 0 and not bool(value.any())


@_handles(aten.mul.Tensor)
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


def recognize(node: fx.Node, constant: Constant = lambda _: None) -> Rectifier | None:
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
