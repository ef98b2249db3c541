"""The operator table: what shoal knows of each operation and of each kind of layer.

An operator is an ATen operation, named as PyTorch prints it ("aten.add.Tensor", or "aten.add" for
all its overloads), or a type of module. Every analysis asks this table; `register_op` adds to it.
A saved network is written in its terms, and nothing that it lacks is ever loaded.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch._ops import OpOverload

from shoal.errors import ConfigError
from shoal.network import contexts, modules
from shoal.registry import import_group


@dataclass(frozen=True)
class Op:
    """What is known of an operator; one that is not in the table has the defaults."""

    name: str = ""  # what files call it; empty where it is not in the table
    # Of a type of module: the constructor's arguments, which are attributes too. Where they are
    # not, `write` gives them as JSON values, and `read` makes a module of these.
    arguments: tuple[str, ...] = ()
    write: Callable[[Any], Mapping[str, Any]] | None = None
    read: Callable[..., nn.Module] | None = None
    weighted: bool = False  # it is a layer with weights: a convolution or a linear map
    depth: str = ""  # the argument, or attribute, that says how many layers with weights it is
    # Where its output has the neurons: "second" or "last" dimension, "kept" where its operand has
    # them, "moved" by a transposition, "reshaped" where they may have moved.
    channels: str | None = None
    pointwise: bool = False  # it acts on each entry alone, or on all alike
    formula: bool = False  # it acts on each entry alone, and may be part of a written activation
    # How it is linear in its first operand in eval mode: "nothing" where it passes it on; another
    # word that `merge.linear_ops` explains; or a function that gives an equal layer with such a
    # word, of the module or of a call's arguments by name.
    linear: str | Callable[[Any], nn.Module] | None = None
    addition: float = 0.0  # the sign of the second of two tensors that are added; 0 for no sum
    pool: str | None = None  # "mean" over positions, or over a "window"
    shape_only: bool = False  # it reads its operand's shape, type or place only
    in_place: bool = False  # its twin that ends in "_" may be replaced by it
    converts: bool = False  # it changes type or place
    mode_argument: int | None = None  # which argument says whether it acts as in training
    # Of a random operation that training alone does: the type of module for a rank.
    dropout: Callable[[int], type[nn.Module]] | None = None
    absorbed: tuple[type[nn.Module], ...] = ()  # rectifiers after which it changes nothing
    # Recognises a call that is a rectifier; `network.calls.rectifier` makes one.
    rectifier: Callable[..., Any] | None = None
    layer: Callable[..., nn.Module | str] | None = None  # see `network.calls`


ATEN = frozenset(Path(__file__).with_name("aten.txt").read_text(encoding="utf-8").split())
"""ATen's functions of tensors, by name: none touches files, processes or memory but its own."""

_UNKNOWN = Op()
_FIELDS = frozenset(field.name for field in dataclasses.fields(Op))
_TABLE: dict[str | type[nn.Module], dict[str, Any]] = {}  # an operator's fields of Op
_TYPES: dict[str, type[nn.Module]] = {}  # by what files call them
_FUNCTIONS: dict[str, Callable[..., Any]] = {}  # those outside ATen, by what files call them
_FUNCTION_NAMES: dict[Callable[..., Any], str] = {}
_GROUP = "shoal.ops"  # of entry points: modules that register operators

_Handler = TypeVar("_Handler", bound=Callable[..., Any])


def register_op(target: OpOverload | type[nn.Module], **properties: Any) -> None:
    """Add an operator to the table, or properties to one that is there.

    A package's module that does so needs no import where it is an entry point of `shoal.ops`.

    Args:
        target: an operation, such as `torch.ops.mylib.gate.default`, or a type of module.
        **properties: fields of `shoal.network.ops.Op`.

    Raises:
        ConfigError: there is no such property, or another type of module has that name.

    Example:
        >>> import shoal, torch
        >>> class Shift(torch.nn.Module):
        ...     def __init__(self, by: float) -> None:
        ...         super().__init__()
        ...         self.by = by
        >>> shoal.register_op(Shift, arguments=("by",))  # a network that holds it can be saved
    """
    unknown = set(properties) - _FIELDS
    if unknown:
        raise ConfigError(
            f"an operator has no property '{min(unknown)}': choose from "
            f"{', '.join(sorted(_FIELDS))}"
        )
    if isinstance(target, OpOverload):
        if target.namespace != "aten":
            _name_function(str(target), target)
        _row(str(target), properties)
        return
    name = properties.setdefault("name", target.__name__)
    if _TYPES.setdefault(name, target) is not target:
        raise ConfigError(f"another type of module is called '{name}': give another name=")
    _row(target, properties)


def handles(name: str, *ops: OpOverload) -> Callable[[_Handler], _Handler]:
    """Make a function that property of operations, as a decorator."""

    def bind(handler: _Handler) -> _Handler:
        for op in ops:
            register_op(op, **{name: handler})
        return handler

    return bind


def _row(key: str | type[nn.Module], properties: Mapping[str, Any]) -> None:
    _TABLE.setdefault(key, {}).update(properties)
    _function.cache_clear()
    _module.cache_clear()


def op_of(target: object) -> Op:
    """Return what is known of an operation, of a module (by its type or a base of it) or a type."""
    if isinstance(target, OpOverload | str):
        return _function(str(target))
    if isinstance(target, nn.Module | type):
        return _module(target if isinstance(target, type) else type(target))
    return _function(_FUNCTION_NAMES.get(target, "")) if callable(target) else _UNKNOWN


@cache
def _function(name: str) -> Op:
    packet = ".".join(name.split(".")[:2])
    fields: dict[str, Any] = {}
    if packet.endswith("_"):
        base = _TABLE.get(packet.removesuffix("_")) or {}
        fields = {key: base[key] for key in ("weighted", "channels") if key in base}
    for key in (packet, name):
        fields.update(_TABLE.get(key) or {})
    return Op(**{"name": name, **fields}) if fields else _UNKNOWN


@cache
def _module(kind: type) -> Op:
    known = next((base for base in kind.__mro__ if base in _TABLE), None)
    return _UNKNOWN if known is None else Op(**_TABLE[known])


# ---------------------------------------------------------------------- names in files


def name_of(target: Any) -> str | None:
    """Return what files call a function or a type of module; None if it is not in the table."""
    if isinstance(target, type):
        name = op_of(target).name
        return name if _TYPES.get(name) is target else None
    name = str(target) if isinstance(target, OpOverload) else _FUNCTION_NAMES.get(target, "")
    return name if function_named(name) is target else None


def function_named(name: str) -> Any:
    """Return the function that files call so; None if it is not in the table."""
    space, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    if name and space != "aten" and name not in _FUNCTIONS:
        import_group(_GROUP)
    if space != "aten" or name in _FUNCTIONS:
        return _FUNCTIONS.get(name)
    if packet not in ATEN and packet.removesuffix("_") not in ATEN:
        return None
    found = getattr(torch.ops.aten, packet, None)
    return getattr(found, overload) if found and overload in found.overloads() else None


def type_named(name: str) -> type[nn.Module] | None:
    """Return the type of module that files call so; None if it is not in the table."""
    if name not in _TYPES:
        import_group(_GROUP)
    return _TYPES.get(name)


# ---------------------------------------------------------------------- functions


def _name_function(name: str, function: Callable[..., Any]) -> None:
    _FUNCTIONS[name] = function
    _FUNCTION_NAMES[function] = name


for _name in (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "eq", "ne", "lt", "le",
    "gt", "ge", "and_", "or_", "not_", "getitem",
):  # fmt: skip
    _name_function(f"operator.{_name}", getattr(operator, _name))
for _name in ("sym_not", "sym_int", "sym_float", "sym_max", "sym_min", "sym_sqrt", "sym_ite"):
    _name_function(f"torch.{_name}", getattr(torch, _name))
for _call in (getattr, torch.ops.higher_order.cond, *contexts.CONTEXT_CALLS):
    _name_function(_call.__name__, _call)


def _aten(names: str, **properties: Any) -> None:
    for name in names.split():
        _row(f"aten.{name}", properties)


_row("operator.getitem", {"channels": "kept"})
_row("getattr", {"shape_only": True})
_aten(
    """_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d
    avg_pool2d avg_pool3d batch_norm conv1d conv2d conv3d conv_depthwise3d conv_transpose1d
    conv_transpose2d conv_transpose3d convolution group_norm instance_norm max_pool1d
    max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d
    max_pool3d_with_indices""",
    channels="second",
)
_aten("addmm embedding embedding_bag layer_norm linear matmul", channels="last")
_aten("permute.default transpose.int", channels="moved")
_aten(
    """_unsafe_view amax flatten mean reshape reshape_as squeeze squeeze_copy sum sum_to_size
    unflatten unsqueeze unsqueeze_copy view view_as view_as_complex view_as_real view_copy""",
    channels="reshaped",
)
_aten(
    """add addbmm addcdiv addcmul addmv addr cat chunk clamp clamp_max clamp_min clone contiguous
    div divide dropout empty_like full_like gelu hardsigmoid hardswish mul multinomial multiply neg
    negative ones_like pad pow rand_like randint_like randn_like relu relu6 roll sigmoid silu slice
    slice_copy slice_scatter softmax split split_copy split_with_sizes split_with_sizes_copy sub
    subtract tanh to topk zeros_like""",
    channels="kept",
)
_aten(
    """conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
    _convolution conv_depthwise3d linear bilinear _trilinear matmul mm bmm mv addmm addmv addbmm
    baddbmm einsum tensordot chain_matmul dot vdot""",
    weighted=True,
)
_aten("lstm gru rnn_tanh rnn_relu", depth="num_layers")
_aten(
    """new_empty new_empty_strided new_full new_ones new_zeros empty_like full_like ones_like
    rand_like randint_like randn_like zeros_like sym_size""",
    shape_only=True,
)
_aten(
    """relu relu6 hardtanh leaky_relu elu selu celu silu hardswish mish rrelu clamp clamp_min
    clamp_max threshold sigmoid hardsigmoid tanh add sub mul div dropout feature_dropout
    alpha_dropout gelu exp neg pow sqrt rsqrt abs square floor masked_fill index_put detach""",
    in_place=True,
)
_aten("to _to_copy", converts=True)
_aten(
    """add.Tensor add.Scalar sub.Tensor mul.Tensor mul.Scalar div.Tensor div.Scalar sigmoid.default
    hardsigmoid.default tanh.default clamp.default clone.default contiguous.default""",
    pointwise=True,
)
_aten(
    """_to_copy abs absolute add atan celu clamp clamp_max clamp_min clip clone contiguous cos
    cosh div divide elu erf erfc exp exp2 expm1 fmax fmin ge gelu greater greater_equal gt
    hardshrink hardsigmoid hardswish hardtanh heaviside index.Tensor index_put le leaky_relu less
    less_equal log log1p log_sigmoid logaddexp logical_and logical_not logical_or lt masked_fill
    masked_scatter masked_select max.other maximum min.other minimum mish mul multiply neg negative
    pow reciprocal relu relu6 rsqrt rsub selu sigmoid sign silu sin sinh softplus softshrink
    special_erf special_erfc special_expit special_expm1 special_log1p special_ndtr sqrt square sub
    subtract tanh threshold to true_divide type_as where""",
    formula=True,
)
_aten("add.Tensor add_.Tensor", addition=1.0)
_aten("sub.Tensor sub_.Tensor", addition=-1.0)
_aten("mul.Tensor div.Tensor mul.Scalar div.Scalar", linear="scale")
_aten("flatten.using_ints view.default reshape.default", linear="flatten")
_aten("slice.Tensor", linear="slice")
_aten("pad.default constant_pad_nd.default", linear="pad")
_aten("avg_pool2d.default", linear="average")
_aten("dropout.default", linear="nothing")
_aten("adaptive_avg_pool1d.default adaptive_avg_pool2d.default mean.dim", pool="mean")
_aten("avg_pool2d.default max_pool2d.default", pool="window")
_aten("batch_norm.default instance_norm.default", mode_argument=5)
_aten("rrelu.default", mode_argument=3)
_aten("lstm.input gru.input rnn_tanh.input rnn_relu.input", mode_argument=6)
_aten("lstm.data gru.data rnn_tanh.data rnn_relu.data", mode_argument=7)
_aten("scaled_dot_product_attention.default", mode_argument=4)
for _names, _dropout in (
    ("dropout.default", lambda rank: nn.Dropout),
    ("alpha_dropout.default", lambda rank: nn.AlphaDropout),
    ("feature_alpha_dropout.default", lambda rank: nn.FeatureAlphaDropout),
    ("feature_dropout.default",
     lambda rank: {3: nn.Dropout1d, 5: nn.Dropout3d}.get(rank, nn.Dropout2d)),
):  # fmt: skip
    _aten(_names, mode_argument=2, dropout=_dropout)


# ---------------------------------------------------------------------- types of module


def _types(kinds: Iterable[type[nn.Module]], arguments: str = "", **properties: Any) -> None:
    for kind in kinds:
        register_op(kind, arguments=tuple(arguments.split()), **properties)


def _ranks(name: str) -> list[type[nn.Module]]:
    """Return the types of a layer for signals, images and volumes."""
    return [getattr(nn, f"{name}{rank}d") for rank in (1, 2, 3)]


_CONV = "in_channels out_channels kernel_size stride padding dilation groups bias padding_mode"
_LINEAR = "in_features out_features bias"
_NORM = "num_features eps momentum affine track_running_stats"
_LAYER: dict[str, Any] = {"weighted": True, "channels": "second"}
_NOTHING: dict[str, Any] = {"pointwise": True, "linear": "nothing"}
_types(_ranks("Conv"), _CONV, **_LAYER, linear="conv")
_types(_ranks("ConvTranspose"), f"{_CONV} output_padding", **_LAYER)
_types([nn.Linear], _LINEAR, weighted=True, channels="last", linear="linear")
_types(
    [*_ranks("BatchNorm"), nn.SyncBatchNorm, modules.FrozenBatchNorm],
    _NORM, channels="second", linear="norm",
)  # fmt: skip
_types(_ranks("InstanceNorm"), _NORM, channels="second")
_types([nn.LayerNorm], "normalized_shape eps elementwise_affine bias", channels="last")
_types([nn.GroupNorm], "num_groups num_channels eps affine", channels="second")
_types([nn.Embedding], "num_embeddings embedding_dim padding_idx", channels="last")
_types([nn.Dropout, *_ranks("Dropout"), nn.AlphaDropout, nn.FeatureAlphaDropout], "p", **_NOTHING)
_types([modules.StochasticDepth], "p per_sample rescale", **_NOTHING)
_types([nn.Identity], **_NOTHING)
_types([modules.Attention], "dropout")

_types([nn.ReLU], absorbed=(nn.ReLU, nn.ReLU6))
_types([nn.ReLU6], absorbed=(nn.ReLU6,))
_types([nn.SELU, nn.SiLU, nn.Hardswish, nn.Mish, modules.Maximum0, modules.OnesChannel])
_types([nn.Hardtanh], "min_val max_val")
_types([nn.LeakyReLU], "negative_slope")
_types([nn.PReLU], "num_parameters", channels="second")
_types([modules.SharedPReLU], channels="second")  # whose owner files name beside it
_types([nn.RReLU], "lower upper")
_types([nn.ELU, nn.CELU], "alpha")
_types([nn.GELU], "approximate")
_types([nn.Softplus], "beta threshold")
_types([nn.Threshold], "threshold value")
_types([modules.Threshold0], "high")
_types([modules.Swish], "beta")
# The rectifier and the line within are written as modules of their own.
_types(
    [modules.Blend],
    write=lambda blend: {"shape": list(blend.slope.shape)},
    read=lambda shape=(): modules.Blend(nn.Identity(), torch.zeros(shape)),
)
_types(
    [modules.ByChannel],
    write=lambda module: {"shape": list(module.on.shape)},
    read=lambda shape: modules.ByChannel(nn.Identity(), nn.Identity(), torch.zeros(shape)),
)
for _kind in (nn.Bilinear, nn.RNNCellBase):  # inside what a graph calls as a whole
    _row(_kind, {"weighted": True})
_row(nn.RNNBase, {"depth": "num_layers"})


def _read_by_mode(operation: str, index: int, in_eval: Any, in_training: Any) -> nn.Module:
    function = function_named(operation)
    if not isinstance(function, OpOverload):
        raise ValueError(f"the operation '{operation}' is not known")
    return modules.ByMode(function, index, in_eval, in_training)


def _read_formula(steps: Any) -> nn.Module:
    read: list[modules.Step] = []
    for operation, given in steps:
        function = function_named(operation)
        if not isinstance(function, OpOverload) or not op_of(function).formula:
            raise ValueError(f"the operation '{operation}' is no part of a formula")
        read.append((function, given))
    return modules.Formula(read)


_types(
    [modules.Formula],
    write=lambda formula: {"steps": [[str(op), given] for op, given in formula.steps]},
    read=_read_formula,
)
_types(
    [modules.ByMode],
    write=lambda by: {"operation": str(by.operation), "index": by.index,
                      "in_eval": by.in_eval, "in_training": by.in_training},
    read=_read_by_mode,
)  # fmt: skip
_types(
    [modules.Line],
    write=lambda line: {"shape": list(line.slope.shape), "channel_dim": line.channel_dim},
    read=lambda shape, channel_dim: modules.Line(
        torch.empty(shape), torch.empty(shape), channel_dim
    ),
    pointwise=True,
    linear="line",
)
