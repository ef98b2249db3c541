"""What every measurement takes: inputs (a tensor, a tuple or a dict), and a module on loan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils import _pytree as pytree

from shoal.errors import ConfigError, ShoalError
from shoal.modes import kept_flags, make_channels_last

Inputs: TypeAlias = torch.Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""One call's inputs: a tensor, a tuple (or list) of positional ones, or a dict of keyword ones."""

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of one call, by position and by keyword."""


def as_call(inputs: Inputs) -> Call:
    """Return the arguments of `model(...)`, by position and by keyword, for these inputs."""
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


def as_inputs(call: Call, names: Sequence[str]) -> Inputs:
    """Return one call's inputs: a tuple, or a mapping if some go by keyword.

    `names` are those of the positional arguments, in order.
    """
    args, kwargs = call
    return {**dict(zip(names, args, strict=False)), **kwargs} if kwargs else args


def tensors_of(inputs: Any) -> list[torch.Tensor]:
    """Return all tensors in `inputs`, nested ones too, in order."""
    found: list[torch.Tensor] = []

    def take(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    map_tensors(take, inputs)
    return found


def map_tensors(fn: Callable[[torch.Tensor], torch.Tensor], inputs: Any) -> Any:
    """Return `inputs` with each tensor replaced by `fn(tensor)`, other leaves unchanged.

    Mappings of all kinds are looked into, and those that PyTorch does not know become dicts.
    """

    def changed(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return fn(leaf)
        return map_tensors(fn, dict(leaf)) if isinstance(leaf, Mapping) else leaf

    return pytree.tree_map(changed, inputs)


def batch_size(inputs: Inputs) -> int:
    """Return the number of samples: the first dimension of the first tensor that has one."""
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
    own = (*model.parameters(), *model.buffers()) if isinstance(model, nn.Module) else ()
    return next((t.device for t in (*own, *tensors_of(inputs))), torch.device("cpu"))


def resolve_device(device: torch.device | str) -> torch.device:
    """Return the device with its index ("cuda" becomes "cuda:0"); it must be here."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"there is no device '{device}' here ({first_line(error)}): use device='cpu'"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def last_line(error: BaseException) -> str:
    """Return the last line of an error's text, for errors that say what is wrong at their end."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


@contextmanager
def calling(who: str, keep: type[ShoalError] | tuple[()] = ()) -> Iterator[None]:
    """Raise `ConfigError` for what goes wrong in a call of a model, but for errors to `keep`."""
    try:
        yield
    except keep:
        raise
    except Exception as error:
        raise ConfigError(
            f"{who} cannot be called with these inputs ({first_line(error)}): pass inputs of the "
            "shapes and types that its forward takes"
        ) from error


def misfit(given: Collection[torch.dtype], weights: torch.dtype | None, who: str) -> str:
    """Return in a line that inputs are of another type than weights; empty where they are not."""
    wrong = set(given) - {weights}
    if weights is None or not wrong:
        return ""
    inputs, own = (
        " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        for kinds in (wrong, {weights})
    )
    return (
        f"the inputs are {inputs} and the weights of {who} {own}: convert the inputs to {own}, or "
        f"{'the network' if who == 'the network' else 'the model'} to the type of the inputs"
    )


# ---------------------------------------------------------------------- modules on loan


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
    however the block is left; converted weights take memory beside them. Anything but an
    `nn.Module` is lent as it is. `dtype` is for floating tensors, `channels_last` for 4-D weights.
    """
    if not isinstance(model, nn.Module):
        yield model
        return
    with _evaluating(model), _keeping_tensors(model), torch.inference_mode(False):
        if device is not None or dtype is not None:
            model.to(device=device, dtype=dtype)
        # Not `model.to(memory_format=...)`: that fails on a model that also has a 5-D parameter.
        if channels_last:
            make_channels_last(model)
        yield model


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    def set_mode(training: bool) -> None:
        try:
            model.train(training)
        except NotImplementedError:  # a module from torch.export: its graph has one fixed mode
            for module in model.modules():
                module.training = training

    was_training = model.training
    if not any(module.training for module in model.modules()):
        yield
        return
    with kept_flags(model):
        set_mode(False)
        try:
            yield
        finally:
            # The model's own train() first: some, such as adapters, undo there what eval() did.
            set_mode(was_training)


@contextmanager
def _keeping_tensors(model: nn.Module) -> Iterator[None]:
    parameters = [
        (module._parameters, name, tensor, tensor.data, tensor.grad)
        for module in model.modules()
        for name, tensor in module._parameters.items()
        if tensor is not None
    ]
    buffers = [
        (module._buffers, name, tensor, tensor.detach().clone(), version_of(tensor))
        for module in model.modules()
        for name, tensor in module._buffers.items()
        if tensor is not None
    ]
    for _, _, parameter, _, _ in parameters:
        parameter.grad = None  # so that conversions do not convert gradients
    try:
        yield
    finally:
        for table, name, parameter, data, grad in parameters:
            _put_back(table, name, parameter)
            if _place(parameter.data) != _place(data):
                parameter.data = data
            if parameter.grad is not grad:
                parameter.grad = grad
        for held, name, buffer, values, version in buffers:
            _put_back(held, name, buffer)
            if version_of(buffer) != version:
                with torch.no_grad():
                    buffer.copy_(values)


def _put_back(table: Any, name: str, tensor: torch.Tensor) -> None:
    # `table` is a dict, or what TorchScript has for one, which can only look up and set.
    if name not in table or table[name] is not tensor:
        table[name] = tensor


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.dtype, tensor.data_ptr(), tensor.stride()


def version_of(tensor: torch.Tensor) -> int | None:
    """Return a number that each change in place raises; None for what inference mode made."""
    return None if tensor.is_inference() else tensor._version
