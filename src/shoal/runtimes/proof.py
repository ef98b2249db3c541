"""Prove that what was made of a network computes the same; how much it may differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import ShoalError
from shoal.network.agreement import compare_outputs, random_like
from shoal.network.inputs import Inputs, borrowed, tensors_of
from shoal.runtimes.runtime import Runner

TOLERANCES = {  # the largest relative error allowed, from the finest type to the coarsest
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}


def float_type(network: nn.Module) -> torch.dtype:
    """Return the coarsest floating type among the network's tensors."""
    used = {tensor.dtype for tensor in (*network.parameters(), *network.buffers())}
    return next((kind for kind in reversed(TOLERANCES) if kind in used), torch.float32)


def check_runner(runner: Runner, network: Any, inputs: Inputs, title: str) -> None:
    """Compare a runner with its network, on the inputs and on random ones like them.

    On a GPU float32 may be computed in TF32, which has float16's digits, and is then compared as
    that. Raises `ShoalError` where they differ.
    """
    place = torch.device(runner.device)
    kind = float_type(network) if isinstance(network, nn.Module) else torch.float32
    if place.type == "cuda" and kind == torch.float32:
        kind = torch.float16
    allowed = TOLERANCES[kind]
    with borrowed(network, device=place) as lent:
        agreement = compare_outputs(
            _flat(lent), _flat(runner), [inputs, random_like(inputs)], device=place
        )
    what = agreement.fault(allowed)
    if what:
        raise ShoalError(
            f"in {title} the network computes something else ({what}): choose another runtime"
        )


def _flat(model: Callable[..., Any]) -> Callable[..., list[Tensor]]:
    """Return `model` as a function that gives out all its tensors in order."""
    return lambda *args, **kwargs: tensors_of(model(*args, **kwargs))
