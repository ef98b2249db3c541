"""Prove that a merged network computes what the network computed before."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch

from shoal.data.batch import split_batch
from shoal.errors import ConfigError
from shoal.merge.build import Attempt
from shoal.modes import device_of, dtype_of
from shoal.network import Network
from shoal.network.agreement import compare_outputs
from shoal.network.inputs import as_call, map_tensors, repeat_rows
from shoal.passes.batches import plain

__all__ = ["Verifier", "resized", "sample_inputs"]

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}


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


def resized(inputs: Any, batch: int) -> Any:
    """Return the inputs with that many samples, repeated or cut off."""
    return map_tensors(lambda tensor: repeat_rows(tensor, batch), inputs)


def _cast(inputs: Any, dtype: torch.dtype) -> Any:
    return map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)


class Verifier:
    """Compares merged copies of a network with it, on `inputs`.

    `base` is a copy to merge: in float64 where the network can run so, else as it is.
    """

    def __init__(self, network: Network, inputs: list[Any]) -> None:
        self.network = network
        self.inputs = inputs
        self.dtype = dtype_of(network)
        self.base = self._in_float64()

    def _in_float64(self) -> Network:
        copy = self.network.copy().eval()
        if self.dtype in (None, torch.float64):
            return copy
        try:
            copy.double()
            args, kwargs = as_call(_cast(self.inputs[-1], torch.float64))
            with torch.no_grad():
                copy(*args, **kwargs)
        except (RuntimeError, TypeError):  # some devices have no float64
            return self.network.copy().eval()
        return copy

    def agrees(self, attempt: Attempt) -> bool:
        """Compare an attempt's outputs with the network's; brings it to the network's type."""
        try:
            return self._compare(attempt)
        except ConfigError:  # the merged network cannot even be called
            attempt.error = math.inf
            return False

    def _compare(self, attempt: Attempt) -> bool:
        merged = attempt.network
        if dtype_of(self.base) == torch.float64:
            inputs = [_cast(given, torch.float64) for given in self.inputs]
            attempt.error_float64 = compare_outputs(self.base, merged, inputs).max_rel_error
            if attempt.error_float64 > _TOLERANCE[torch.float64]:
                return False
        if self.dtype is not None:
            merged.to(self.dtype)
        attempt.error = compare_outputs(self.network, merged, self.inputs).max_rel_error
        return attempt.error <= _TOLERANCE.get(self.dtype or torch.float32, 1e-5)
