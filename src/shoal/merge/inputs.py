"""The inputs on which a network is compared before and after a merge."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch

from shoal.data.batch import split_batch
from shoal.modes import device_of
from shoal.network import Network
from shoal.passes.batches import plain

__all__ = ["call", "cast", "resized", "sample_inputs"]


def sample_inputs(network: Network, loader: Iterable[Any] | None) -> list[Any]:
    """Return what outputs are compared on: a real batch if there is one, and random ones."""
    given: list[Any] = []
    if loader is not None:
        for raw in islice(plain(loader), 1):
            real = split_batch(raw).first(8).to(device_of(network))
            given.append(_as_one(network, real.args, real.kwargs))
    for seed, batch in ((0, 2), (1, 3)):
        given.append(_as_one(network, *network.example_inputs(batch=batch, seed=seed)))
    return given


def _as_one(network: Network, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return a call's inputs as a tuple, or as a mapping if some go by keyword."""
    if not kwargs:
        return args
    return {**dict(zip(network.inputs.parameters, args, strict=False)), **kwargs}


def cast(inputs: Any, dtype: torch.dtype) -> Any:
    """Return the inputs with their floating tensors in another type."""

    def to_type(value: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    if isinstance(inputs, dict):
        return {name: to_type(value) for name, value in inputs.items()}
    return tuple(to_type(value) for value in inputs)


def resized(inputs: Any, batch: int) -> Any:
    """Return the inputs with that many samples, repeated or cut off."""

    def take(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            return value
        times = -(-batch // len(value))
        return value.repeat(times, *[1] * (value.dim() - 1))[:batch]

    if isinstance(inputs, dict):
        return {name: take(value) for name, value in inputs.items()}
    return tuple(take(value) for value in inputs)


def call(network: Network, inputs: Any) -> Any:
    """Return the network's output for such inputs."""
    return network(**inputs) if isinstance(inputs, dict) else network(*inputs)
