"""Borrow a module for a measurement and give it back exactly as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shoal.modes import kept_flags

__all__ = ["borrowed"]


@contextmanager
def borrowed(
    model: Any,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> Iterator[Any]:
    """Lend `model` in eval mode and in the asked form; afterwards it is as it was, to the bit.

    Modes, parameters (the same objects over the same memory), gradients and buffers all come back,
    however the block is left. Conversions are made aside, so while the block runs the converted
    weights take memory beside the original ones. Anything but an `nn.Module` is lent as it is.

    Args:
        model: the module, or any callable.
        device: where parameters and buffers go; None leaves them.
        dtype: what floating parameters and buffers become; None leaves them.
        channels_last: whether 4-D parameters become channels_last.
    """
    if not isinstance(model, nn.Module):
        yield model
        return
    with _evaluating(model), _keeping_tensors(model), torch.inference_mode(False):
        _convert(model, device, dtype, channels_last)
        yield model


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    if not any(module.training for module in model.modules()):
        yield
        return
    was_training = model.training
    with kept_flags(model):
        _set_mode(model, False)
        try:
            yield
        finally:
            # The model's own train() first: some, such as adapters, undo there what eval() did.
            _set_mode(model, was_training)


def _set_mode(model: nn.Module, training: bool) -> None:
    try:
        model.train(training)
    except NotImplementedError:  # a module from torch.export: its graph has one fixed mode
        for module in model.modules():
            module.training = training


@dataclass(frozen=True)
class _SavedBuffer:
    owner: nn.Module
    name: str
    tensor: torch.Tensor
    values: torch.Tensor
    version: int | None  # None: an inference tensor, which has no version

    def restore(self) -> None:
        _put_back(self.owner._buffers, self.name, self.tensor)
        if self.version is not None and self.tensor._version != self.version:
            with torch.no_grad():
                self.tensor.copy_(self.values)


@dataclass(frozen=True)
class _SavedParameter:
    owner: nn.Module
    name: str
    parameter: nn.Parameter
    data: torch.Tensor
    grad: torch.Tensor | None

    def restore(self) -> None:
        _put_back(self.owner._parameters, self.name, self.parameter)
        if not _same_view(self.parameter.data, self.data):
            self.parameter.data = self.data
        if self.parameter.grad is not self.grad:
            self.parameter.grad = self.grad


def _put_back(entries: Any, name: str, tensor: torch.Tensor) -> None:
    # `entries` is a dict, or what TorchScript has for one, which can only look up and set.
    if name not in entries or entries[name] is not tensor:
        entries[name] = tensor


def _same_view(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.device == b.device
        and a.dtype == b.dtype
        and a.data_ptr() == b.data_ptr()
        and a.stride() == b.stride()
    )


@contextmanager
def _keeping_tensors(model: nn.Module) -> Iterator[None]:
    parameters = [
        _SavedParameter(module, name, tensor, tensor.data, tensor.grad)
        for module in model.modules()
        for name, tensor in module._parameters.items()
        if tensor is not None
    ]
    buffers = [
        _SavedBuffer(module, name, tensor, tensor.detach().clone(), _version(tensor))
        for module in model.modules()
        for name, tensor in module._buffers.items()
        if tensor is not None
    ]
    for parameter in parameters:
        parameter.parameter.grad = None  # so that conversions do not convert gradients
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.restore()
        for buffer in buffers:
            buffer.restore()


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _convert(
    model: nn.Module,
    device: torch.device | None,
    dtype: torch.dtype | None,
    channels_last: bool,
) -> None:
    if device is not None or dtype is not None:
        model.to(device=device, dtype=dtype)
    if channels_last:
        with torch.no_grad():
            _replace_data(model, lambda t: t.contiguous(memory_format=torch.channels_last))


def _replace_data(model: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
    # Not `model.to(memory_format=...)`: that fails on a model that also has a 5-D parameter.
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = fn(parameter.data)
