"""How inputs are given to every measurement: a tensor, a tuple of them, or a dict of keywords."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils import _pytree as pytree

from shoal.errors import ConfigError

__all__ = [
    "Inputs",
    "as_call",
    "batch_size",
    "first_line",
    "home_device",
    "map_tensors",
    "repeat_rows",
    "resolve_device",
    "tensors_of",
]

Inputs: TypeAlias = torch.Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""One call's inputs: a tensor, a tuple (or list) of positional ones, or a dict of keyword ones."""


def as_call(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments of `model(...)` for these inputs.

    Raises:
        ConfigError: `inputs` is neither a tensor, a tuple, a list nor a dict with string keys.
    """
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    if isinstance(inputs, Mapping) and all(isinstance(key, str) for key in inputs):
        return (), dict(inputs)
    raise ConfigError(
        f"inputs must be a tensor, a tuple of tensors or a dict of keyword inputs, "
        f"not {type(inputs).__name__}: pass what the model's forward takes"
    )


def tensors_of(inputs: Any) -> list[torch.Tensor]:
    """Return all tensors in `inputs`, nested ones too, in order."""
    return [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]


def map_tensors(fn: Callable[[torch.Tensor], torch.Tensor], inputs: Any) -> Any:
    """Return `inputs` with each tensor replaced by `fn(tensor)`, other leaves unchanged."""
    return pytree.tree_map_only(torch.Tensor, fn, inputs)


def batch_size(inputs: Inputs) -> int:
    """Return the number of samples: the first dimension of the first tensor that has one.

    Raises:
        ConfigError: there is no such tensor, or it is empty, or these are no inputs at all.
    """
    for tensor in tensors_of(as_call(inputs)):
        if tensor.dim() > 0:
            if tensor.shape[0] == 0:
                raise ConfigError("the inputs hold no sample: give a batch of at least one")
            return int(tensor.shape[0])
    raise ConfigError("the inputs hold no tensor with a batch dimension: give at least one")


def repeat_rows(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """Return the first `size` samples, repeated where there are fewer; a scalar as it is."""
    if tensor.dim() == 0:
        return tensor
    return tensor[torch.arange(size, device=tensor.device) % len(tensor)]


def home_device(model: Any, inputs: Any) -> torch.device:
    """Return the device of the model's first parameter or buffer, or else of the inputs."""
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    for tensor in tensors_of(inputs):
        return tensor.device
    return torch.device("cpu")


def resolve_device(device: torch.device | str) -> torch.device:
    """Return the device with its index ("cuda" becomes "cuda:0").

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"there is no device '{device}' here ({first_line(error)}): use device='cpu'"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
