"""Borrow a module for a measurement and give it back exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
        if device is not None or dtype is not None:
            model.to(device=device, dtype=dtype)
        # Not `model.to(memory_format=...)`: that fails on a model that also has a 5-D parameter.
        for parameter in model.parameters() if channels_last else ():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
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
        (module, name, tensor, tensor.data, tensor.grad)
        for module in model.modules()
        for name, tensor in module._parameters.items()
        if tensor is not None
    ]
    buffers = [
        (module, name, tensor, tensor.detach().clone(), _version(tensor))
        for module in model.modules()
        for name, tensor in module._buffers.items()
        if tensor is not None
    ]
    for _, _, parameter, _, _ in parameters:
        parameter.grad = None  # so that conversions do not convert gradients
    try:
        yield
    finally:
        for module, name, parameter, data, grad in parameters:
            _put_back(module._parameters, name, parameter)
            if not _same_view(parameter.data, data):
                parameter.data = data
            if parameter.grad is not grad:
                parameter.grad = grad
        for module, name, buffer, values, version in buffers:
            _put_back(module._buffers, name, buffer)
            if _version(buffer) != version:
                with torch.no_grad():
                    buffer.copy_(values)


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
