"""The work of a network, in multiply-accumulates (MACs), and its number of parameters.

PyTorch's `FlopCounterMode` counts two FLOPs per multiply-accumulate. Here its number is halved and
assigned to modules, and what it ignored silently is named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, TypeAlias

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch.utils.module_tracker import ModuleTracker

from shoal.errors import ConfigError
from shoal.network.borrow import borrowed
from shoal.network.inputs import Inputs, as_call, batch_size, first_line, home_device, map_tensors
from shoal.quiet import quietly

__all__ = ["MacCount", "count_macs", "count_params"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MacCount:
    """The multiply-accumulates of one sample (half of what is often printed as FLOPs).

    Attributes:
        total: MACs of one sample: those of the whole batch divided by the batch size.
        by_module: MACs of one sample by module path, each without its children's; the empty path
            is the model itself (functional calls in its own forward). The values sum to `total`.
        uncounted: operations that were run and are neither counted nor known to be free; empty
            when the count is complete.
    """

    total: int
    by_module: dict[str, int]
    uncounted: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {**asdict(self), "uncounted": list(self.uncounted)}


def count_params(model: nn.Module) -> int:
    """Return the number of parameter elements; a parameter used in several places counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, example_inputs: Inputs) -> MacCount:
    """Count the multiply-accumulates that `model` spends on one sample in eval mode.

    Convolutions, linear layers, matrix products and attention count, wherever they are called
    (modules, functions, fused kernels); normalisations, activations, pooling and other elementwise
    work do not, as is the custom. Biases are free. The model is run once on shape-only tensors,
    which computes nothing; a model whose control flow depends on values is run once for real.
    The model is left exactly as it was.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of them, or a dict of keyword inputs, batch first. Work
            that does not depend on the batch is divided by its size, too.

    Raises:
        ConfigError: `model` is not a module, or cannot be called with these inputs.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"counting MACs needs an nn.Module, not {type(model).__name__}: pass the model itself"
        )
    samples = batch_size(example_inputs)
    device = home_device(model, example_inputs)
    call = as_call(map_tensors(lambda t: t.detach().to(device), example_inputs))
    with borrowed(model), torch.no_grad():
        flops, unknown = _count_call(model, *call)
    by_module = {path: round(n / 2 / samples) for path, n in flops.items() if n}
    return MacCount(sum(by_module.values()), by_module, tuple(sorted(unknown)))


_Counted: TypeAlias = tuple[dict[str, int], set[str]]
"""FLOPs of the batch by module path, and the operations that are not known."""


def _count_call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Counted:
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    fake_args, fake_kwargs = map_tensors(fakes.from_tensor, (args, kwargs))
    try:
        with fakes, quietly():  # PyTorch prints a traceback of its own for a call that fails
            return _counted(model, fake_args, fake_kwargs)
    except Exception as error:  # whatever it is, the real run below decides whether it is the model
        _log.debug("counting MACs on shapes alone failed, running the model instead: %s", error)
    try:
        return _counted(model, *map_tensors(torch.clone, (args, kwargs)))
    except Exception as error:
        raise ConfigError(
            f"the model cannot be called with these inputs ({first_line(error)}): "
            "pass example inputs of the shapes and types that its forward takes"
        ) from error


def _counted(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Counted:
    counter = FlopCounterMode(display=False, custom_mapping=_MORE_FORMULAS)
    counter.mod_tracker = _Innermost(model)
    with _plain_kernels(), _Witness(counter.flop_registry) as witness, counter:
        model(*args, **kwargs)
    flops = {path: sum(by_op.values()) for path, by_op in counter.flop_counts.items()}
    return flops, witness.unknown


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Keep attention and recurrent layers from disappearing into fused kernels."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # `mkldnn.flags` would do the same, but warns on machines without Intel GPUs.
    one_dnn = torch.backends.mkldnn.set_flags(False, _fp32_precision=None)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mkldnn.set_flags(one_dnn[0], _fp32_precision=None)
        torch.backends.mha.set_fastpath_enabled(fast_path)


class _Innermost(ModuleTracker):
    """Names the innermost module that runs, by its path in the model.

    PyTorch's own tracker names the outer ones too, and a module of two paths by one of them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._running: list[str] = [""]

    @property
    def parents(self) -> set[str]:  # type: ignore[override]
        return {self._running[-1]}

    def __enter__(self) -> _Innermost:
        # Global hooks: the model's own hooks are left alone, and its fast paths stay as they are.
        def enter(module: nn.Module, args: Any) -> None:
            if id(module) in self._paths:
                self._running.append(self._paths[id(module)])

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if id(module) in self._paths:
                self._running.pop()

        self._handles = (
            module_hooks.register_module_forward_pre_hook(enter),
            module_hooks.register_module_forward_hook(leave, always_call=True),
        )
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


class _Witness(TorchDispatchMode):
    """Records operations that are neither counted nor free."""

    def __init__(self, counted: Mapping[Any, Any]) -> None:
        super().__init__()
        self.unknown: set[str] = set()
        self._counted = counted

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "_overloadpacket", None) not in self._counted and not _is_free(func):
            self.unknown.add(str(getattr(func, "_overloadpacket", func)))
        return func(*args, **(kwargs or {}))


def _product(left: int, right: int) -> Callable[..., int]:
    """The FLOPs of a matrix product of the arguments at `left` and `right`."""

    def flops(*shapes: Any, **_: Any) -> int:
        a, b = shapes[left], shapes[right]
        return 2 * prod(a) * (b[-1] if len(b) > 1 else 1)  # (…, n, k) times (…, k, m), or (k)

    return flops


def _trilinear(first: Any, weight: Any, *_: Any, **__: Any) -> int:
    # nn.Bilinear: first input (n, i), weight (o, i, j), second input (n, j). Summing over i first
    # takes n·o·i·j products; the n·o·j of the second sum are a lower order and left out.
    return 2 * int(first[0]) * prod(weight)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


_aten = torch.ops.aten
# What PyTorch's counter does not know.
_MORE_FORMULAS: dict[Any, Callable[..., int]] = {
    _aten.mv: _product(0, 1),
    _aten.dot: _product(0, 1),
    _aten.vdot: _product(0, 1),
    _aten._int_mm: _product(0, 1),
    _aten._addmm_activation: _product(1, 2),
    _aten.addbmm: _product(1, 2),
    _aten.addmv: _product(1, 2),
    _aten._trilinear: _trilinear,
    # Only a graph that was decomposed before holds it: see `_plain_kernels`.
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}

_FREE_TAGS = {"pointwise", "reduction", "view_copy", "inplace_view"}

# What PyTorch's tags leave out: normalisation, pooling, softmax, resampling, and moving data about.
_FREE_NAMES = """
_native_batch_norm_legit _native_batch_norm_legit_no_training native_batch_norm
cudnn_batch_norm miopen_batch_norm batch_norm_with_update native_layer_norm native_group_norm
_fused_rms_norm _local_response_norm _softmax _log_softmax _safe_softmax _prelu_kernel
hardswish hardsigmoid hardtanh glu rrelu_with_noise native_dropout bernoulli
avg_pool1d avg_pool2d avg_pool3d max_pool1d_with_indices max_pool2d_with_indices
max_pool3d_with_indices max_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d
_adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d
upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
grid_sampler_2d grid_sampler_3d affine_grid_generator im2col col2im
constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle
cat stack repeat repeat_interleave roll flip rot90 unsafe_split unsafe_split_with_sizes
_unsafe_view _reshape_copy _to_copy copy clone contiguous lift_fresh lift_fresh_copy
_pin_memory resize set set_data
empty empty_like empty_strided new_empty new_empty_strided zeros zeros_like new_zeros ones
ones_like new_ones full full_like new_full fill zero arange linspace eye tril_indices
triu_indices tril triu rand randn rand_like randn_like randint randperm uniform normal
scalar_tensor _local_scalar_dense
index _unsafe_index index_put _index_put_impl _unsafe_index_put index_select index_copy
index_fill gather scatter scatter_add scatter_reduce index_add masked_fill masked_scatter
masked_select nonzero select_scatter slice_scatter as_strided_scatter take embedding
_embedding_bag _embedding_bag_forward_only one_hot bucketize searchsorted
cumsum cumprod logcumsumexp cummax cummin topk sort argsort kthvalue median mode unique_dim
_unique2 max min argmax argmin any all sum mean var var_mean std std_mean amax amin aminmax
norm linalg_vector_norm logsumexp histc bincount
"""
_FREE = frozenset(_FREE_NAMES.split())


def _is_free(func: Any) -> bool:
    """Whether an operation needs no multiply-accumulates, as they are usually counted."""
    if not isinstance(func, torch._ops.OpOverload):
        return False
    if func.namespace == "prim" or func.is_view:
        return True
    if any(str(tag).rpartition(".")[2] in _FREE_TAGS for tag in func.tags):
        return True
    return func._opname.rstrip("_") in _FREE
