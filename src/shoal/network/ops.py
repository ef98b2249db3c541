"""The operator table: what shoal knows of each operation and of each kind of layer.

An operator is an ATen operation, named as PyTorch prints it ("aten.add.Tensor", or "aten.add" for
all its overloads), or a type of module. Every analysis asks this table; `register_op` adds to it.
A saved network is written in its terms, and nothing that it lacks is ever loaded.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload

from shoal.errors import ConfigError
from shoal.network import contexts, modules

__all__ = ["Op", "function_named", "name_of", "op_of", "register_op", "type_named"]


@dataclass(frozen=True)
class Op:
    """What is known of an operator; one that is not in the table has the defaults.

    Attributes:
        name: what files call it; empty where it is not in the table.
        arguments: of a type of module: the constructor's arguments, which are attributes too.
        write: of a type of module: gives the constructor's arguments as JSON values, where they
            are no attributes.
        read: of a type of module: makes one from these arguments; None for the type itself.
    """

    name: str = ""
    arguments: tuple[str, ...] = ()
    write: Callable[[Any], Mapping[str, Any]] | None = None
    read: Callable[..., nn.Module] | None = None


_UNKNOWN = Op()
_FIELDS = frozenset(field.name for field in dataclasses.fields(Op))
_TABLE: dict[str | type[nn.Module], dict[str, Any]] = {}  # an operator's fields of Op
_TYPES: dict[str, type[nn.Module]] = {}  # by what files call them
_FUNCTIONS: dict[str, Callable[..., Any]] = {}  # those outside ATen, by what files call them
_FUNCTION_NAMES: dict[Callable[..., Any], str] = {}


def register_op(target: OpOverload | type[nn.Module], **properties: Any) -> None:
    """Add an operator to the table, or properties to one that is there.

    Args:
        target: an operation, such as `torch.ops.mylib.gate.default`, or a type of module.
        **properties: attributes of `shoal.network.ops.Op`.

    Raises:
        ConfigError: there is no such property, or another type of module has that name.

    Example:
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


def _row(key: str | type[nn.Module], properties: Mapping[str, Any]) -> None:
    _TABLE.setdefault(key, {}).update(properties)
    _function.cache_clear()
    _module.cache_clear()


def op_of(target: object) -> Op:
    """Return what is known of an operation, of a module (by its type or a base of it) or a type."""
    if isinstance(target, nn.Module):
        target = type(target)
    return _module(target) if isinstance(target, type) else _function(str(target))


@cache
def _function(name: str) -> Op:
    packet = ".".join(name.split(".")[:2])
    fields = {**_TABLE.get(packet, {}), **_TABLE.get(name, {})}
    return Op(**{"name": name, **fields}) if fields else _UNKNOWN


@cache
def _module(kind: type) -> Op:
    fields = next((_TABLE[base] for base in kind.__mro__ if base in _TABLE), None)
    return Op(**fields) if fields else _UNKNOWN


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
    if space != "aten" or name in _FUNCTIONS:
        return _FUNCTIONS.get(name)
    if packet not in _ATEN and packet.removesuffix("_") not in _ATEN:
        return None
    found = getattr(torch.ops.aten, packet, None)
    return getattr(found, overload) if found and overload in found.overloads() else None


def type_named(name: str) -> type[nn.Module] | None:
    """Return the type of module that files call so; None if it is not in the table."""
    return _TYPES.get(name)


def _name_function(name: str, function: Callable[..., Any]) -> None:
    _FUNCTIONS[name] = function
    _FUNCTION_NAMES[function] = name


# ---------------------------------------------------------------------- functions

# ATen's functions of tensors. None of them touches files, processes or other memory than its own.
_ATEN_NAMES = """
_adaptive_avg_pool2d _adaptive_avg_pool3d _assert_async _assert_scalar _assert_tensor_metadata
_cdist_forward _conj _conv_depthwise2d _convolution _fft_c2c _fft_c2r _fft_r2c _linalg_det
_linalg_svd _local_scalar_dense _log_softmax _native_batch_norm_legit
_native_batch_norm_legit_no_training _prelu_kernel _reshape_alias _safe_softmax
_scaled_dot_product_flash_attention_for_cpu _shape_as_tensor _softmax _to_copy _trilinear
_unsafe_index _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm
_weight_norm_interface abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add addbmm
addcdiv addcmul addmm addmv addr affine_grid_generator alias alias_copy all alpha_dropout amax
amin aminmax angle any arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin
argsort as_strided as_strided_copy asin asinh atan atan2 atanh atleast_1d atleast_2d atleast_3d
avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bernoulli bilinear bincount bitwise_and
bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor block_diag bmm
broadcast_tensors broadcast_to bucketize cat cdist ceil celu chain_matmul channel_shuffle chunk
clamp clamp_max clamp_min clip clone col2im column_stack complex concat concatenate conj
conj_physical constant_pad_nd contiguous conv1d conv2d conv3d conv_depthwise3d conv_transpose1d
conv_transpose2d conv_transpose3d convolution copy copysign cos cosh cosine_similarity
count_nonzero cross cummax cummin cumprod cumsum deg2rad detach detach_copy diag diag_embed
diagonal diagonal_copy diagonal_scatter diff digamma dim dist div divide dot dropout dsplit
dstack einsum elu embedding embedding_bag empty empty_like empty_permuted eq equal erf erfc
erfinv exp exp2 expand expand_as expand_copy expm1 exponential eye feature_alpha_dropout
feature_dropout fft_fft fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_ifft fft_ifft2
fft_ifftn fft_ifftshift fft_ihfft fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2
fft_rfftfreq fft_rfftn fill fix flatten flip fliplr flipud float_power floor floor_divide fmax
fmin fmod frac frobenius_norm full full_like gather gcd ge gelu glu greater greater_equal
grid_sampler grid_sampler_2d grid_sampler_3d group_norm gru gt hamming_window hann_window
hardshrink hardsigmoid hardswish hardtanh heaviside hsplit hstack hypot i0 im2col imag index
index_add index_copy index_fill index_put index_reduce index_select inner instance_norm inverse
isclose isfinite isin isinf isnan isneginf isposinf isreal istft item kron kthvalue layer_norm
lcm ldexp le leaky_relu lerp less less_equal lgamma lift_fresh lift_fresh_copy linalg_cholesky
linalg_cross linalg_det linalg_eigh linalg_inv linalg_matrix_norm linalg_matrix_power
linalg_norm linalg_pinv linalg_qr linalg_solve linalg_svd linalg_vecdot linalg_vector_norm
linear linspace log log10 log1p log2 log_sigmoid log_softmax logaddexp logaddexp2 logcumsumexp
logical_and logical_not logical_or logical_xor logit logspace logsumexp lstm lt masked_fill
masked_scatter masked_select matmul matrix_exp matrix_power max max_pool1d
max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices
maximum mean median meshgrid min minimum mish mm mode moveaxis movedim mul multinomial multiply
mv nan_to_num nanmean nanmedian nansum narrow narrow_copy native_batch_norm native_dropout
native_group_norm native_layer_norm ne neg negative new_empty new_empty_strided new_full
new_ones new_zeros nextafter nonzero norm normal not_equal numel numpy_T one_hot ones ones_like
outer pad pairwise_distance pdist permute permute_copy pixel_shuffle pixel_unshuffle polar
positive pow prelu prod quantile rad2deg rand rand_like randint randint_like randn randn_like
randperm ravel real reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6
remainder renorm repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d
reshape reshape_as resolve_conj resolve_neg rms_norm rnn_relu rnn_tanh roll rot90 round rrelu
rrelu_with_noise rsqrt rsub scalar_tensor scaled_dot_product_attention scatter scatter_add
scatter_reduce searchsorted select select_copy select_scatter selu sgn sigmoid sign signbit silu
sin sinc sinh size slice slice_copy slice_scatter softmax softplus softshrink sort special_entr
special_erf special_erfc special_erfinv special_exp2 special_expit special_expm1 special_log1p
special_log_softmax special_logit special_logsumexp special_round special_sinc special_softmax
special_xlog1py special_xlogy split split_copy split_with_sizes split_with_sizes_copy sqrt
square squeeze squeeze_copy stack std std_mean stft stride sub subtract sum sum_to_size swapaxes
swapdims sym_constrain_range sym_constrain_range_for_size sym_numel sym_size sym_storage_offset
sym_stride t t_copy take take_along_dim tan tanh tensor_split tensordot threshold tile to topk
trace transpose transpose_copy trapezoid tril tril_indices triu triu_indices true_divide trunc
type_as unbind unbind_copy unflatten unfold unfold_copy unique_consecutive unsafe_chunk
unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_copy upsample_bicubic2d
upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
upsample_trilinear3d vander var var_mean vdot view view_as view_as_complex view_as_real
view_copy vsplit vstack where xlogy zero zeros zeros_like
"""
_ATEN = frozenset(_ATEN_NAMES.split())

for _name in (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "eq", "ne", "lt", "le",
    "gt", "ge", "and_", "or_", "not_", "getitem",
):  # fmt: skip
    _name_function(f"operator.{_name}", getattr(operator, _name))
for _name in ("sym_not", "sym_int", "sym_float", "sym_max", "sym_min", "sym_sqrt", "sym_ite"):
    _name_function(f"torch.{_name}", getattr(torch, _name))
for _call in (getattr, torch.ops.higher_order.cond, *contexts.CONTEXT_CALLS):
    _name_function(_call.__name__, _call)


# ---------------------------------------------------------------------- types of module


def _types(kinds: tuple[type[nn.Module], ...], arguments: str = "", **properties: Any) -> None:
    for kind in kinds:
        register_op(kind, arguments=tuple(arguments.split()), **properties)


_CONV = "in_channels out_channels kernel_size stride padding dilation groups bias padding_mode"
_types((nn.Conv1d, nn.Conv2d, nn.Conv3d), _CONV)
_types((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), f"{_CONV} output_padding")
_types((nn.Linear,), "in_features out_features bias")
_types(
    (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, modules.FrozenBatchNorm,
     nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    "num_features eps momentum affine track_running_stats",
)  # fmt: skip
_types((nn.LayerNorm,), "normalized_shape eps elementwise_affine bias")
_types((nn.GroupNorm,), "num_groups num_channels eps affine")
_types((nn.Embedding,), "num_embeddings embedding_dim padding_idx")
_types(
    (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    "p",
)
_types((modules.StochasticDepth,), "p per_sample rescale")
_types((nn.Identity, modules.OnesChannel))
_types((modules.Attention,), "dropout")

_types((nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Hardswish, nn.Mish, modules.Maximum0))
_types((nn.Hardtanh,), "min_val max_val")
_types((nn.LeakyReLU,), "negative_slope")
_types((nn.PReLU,), "num_parameters")
_types((nn.RReLU,), "lower upper")
_types((nn.ELU, nn.CELU), "alpha")
_types((nn.GELU,), "approximate")
_types((nn.Softplus,), "beta threshold")
_types((nn.Threshold,), "threshold value")
_types((modules.Threshold0,), "high")
_types((modules.Swish,), "beta")


def _line(shape: list[int], channel_dim: int) -> nn.Module:
    return modules.Line(torch.empty(shape), torch.empty(shape), channel_dim)


def _by_mode(operation: str, index: int, in_eval: Any, in_training: Any) -> nn.Module:
    function = function_named(operation)
    if not isinstance(function, OpOverload):
        raise ValueError(f"the operation '{operation}' is not known")
    return modules.ByMode(function, index, in_eval, in_training)


_types(
    (modules.Line,),
    write=lambda line: {"shape": list(line.slope.shape), "channel_dim": line.channel_dim},
    read=_line,
)
_types(
    (modules.ByMode,),
    write=lambda by: {"operation": str(by.operation), "index": by.index,
                      "in_eval": by.in_eval, "in_training": by.in_training},
    read=_by_mode,
)  # fmt: skip
