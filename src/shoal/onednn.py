"""A defect of oneDNN on CPUs with AVX2 and no AVX-512, and how training avoids it.

The gradient of the weights of a 1×1 convolution whose stride divides the image exactly is computed
by copying every stride-th pixel into scratch memory of (pixels × channels) floats, but with 8
floats between pixels: with fewer than 8 channels it writes beyond the end, and the process aborts
sooner or later. Found by experiment with PyTorch 2.13 (oneDNN 3.12, `jit_1x1:avx2`):

- fails: `conv2d` with 2 to 7 input channels, and `conv_transpose2d` with 2 to 7 output channels;
  fp32; input or weight channels-last; one group, no padding; any stride above 1, in one direction
  or both, that divides the (larger) image; whatever the other channels, bias or dilation;
- does not: 1 channel or from 8 on; contiguous tensors; a stride that does not divide the image;
  larger kernels; groups; padding; bf16 and float64; 1-D and 3-D; the forward pass and the gradient
  of the input; frozen weights.

With stride 1 none of this is run, so such a convolution is computed on every stride-th pixel with
stride 1: the same sums, and the same parameters.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_NOTE = (
    "PyTorch's oneDNN damages memory on this CPU (AVX2 without AVX-512) in the backward pass of "
    "1×1 convolutions with a stride and fewer than 8 channels; they were computed with stride 1 "
    "on every stride-th pixel, which gives the same numbers"
)


@contextmanager
def safe_convolutions(network: nn.Module) -> Iterator[list[str]]:
    """Keep training of `network` in this thread from oneDNN's defect, where the CPU has it.

    Neither the network nor its modules are touched, and functional calls are covered as well.

    Returns:
        A list that receives a note when a convolution had to be computed the other way.
    """
    notes: list[str] = []
    if not (_cpu_has_defect() and any(map(_is_small, network.parameters()))):
        yield notes
        return
    with _SafeConvolutions(notes):
        yield notes


def _cpu_has_defect() -> bool:
    """Whether oneDNN computes with AVX2 here: it can do no better, or is set to."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    if limit.lower() in ("sse41", "avx"):
        return False
    # Private names of torch, because ATEN_CPU_CAPABILITY changes what the public one says and
    # nothing of oneDNN. Where one is gone, the other way is taken: it is right everywhere.
    avx2 = getattr(torch.cpu, "_is_avx2_supported", lambda: True)()
    avx512 = getattr(torch.cpu, "_is_avx512_supported", lambda: False)()
    return avx2 and (limit.lower().startswith("avx2") or not avx512)


def _is_small(weight: Tensor) -> bool:
    return weight.ndim == 4 and weight.shape[2:] == (1, 1) and weight.shape[1] < 8


def _is_contiguous(tensor: Tensor) -> bool:
    """Whether the strides are a contiguous tensor's also where a dimension of size 1 hides it."""
    return tensor.is_contiguous() and tensor.stride(-1) == 1


class _SafeConvolutions(TorchFunctionMode):
    def __init__(self, notes: list[str]) -> None:
        super().__init__()
        self._notes = notes

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _PARAMETERS and torch.is_grad_enabled():
            result = _with_stride_1(func, dict(zip(_PARAMETERS[func], args, strict=False)) | kwargs)
            if result is not None:
                if not self._notes:
                    self._notes.append(_NOTE)
                return result
        return func(*args, **kwargs)


def _with_stride_1(func: Any, given: dict[str, Any]) -> Tensor | None:
    """Return what a convolution would, computed the other way; None where that is not needed."""
    input, weight = given["input"], given["weight"]
    rows, columns = _pair(given.get("stride", 1))
    height, width = input.shape[-2:]
    padding = given.get("padding", 0)
    if padding != "valid" and any(_pair(padding)):
        return None
    transposed = "output_padding" in _PARAMETERS[func]
    if transposed:
        exact = _pair(given.get("output_padding", 0)) == (rows - 1, columns - 1)
    else:
        exact = not (height % rows or width % columns)
    if not (
        exact
        and max(rows, columns) > 1
        and given.get("groups", 1) == 1
        and weight.requires_grad
        and _is_small(weight)
        and input.device.type == "cpu"
        and not (_is_contiguous(input) and _is_contiguous(weight))
    ):
        return None
    if not transposed:
        return torch.conv2d(input[..., ::rows, ::columns], weight, given.get("bias"))
    spread = input.new_zeros(*input.shape[:-2], height * rows, width * columns)
    spread[..., ::rows, ::columns] = input
    return torch.conv_transpose2d(spread, weight, given.get("bias"))


def _pair(value: Any) -> tuple[int, int]:
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return sizes[0], sizes[-1]


_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (*_CONV[:5], "output_padding", "groups", "dilation")
_PARAMETERS: dict[Any, tuple[str, ...]] = {
    torch.conv2d: _CONV,
    torch.ops.aten.conv2d.default: _CONV,
    torch.ops.aten.conv2d.padding: _CONV,
    torch.conv_transpose2d: _TRANSPOSED,
    torch.ops.aten.conv_transpose2d.input: _TRANSPOSED,
}
