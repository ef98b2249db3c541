"""Weights as at the beginning: what a network of this architecture is before any training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from shoal.network.network import Network
from shoal.seeds import derive_seed, preserved_rng, seed_everything

_SCALES = ("weight", "gamma", "gain", "scale", "slope", "alpha")  # in names of what multiplies
_DEVIATION = 0.02  # of tensors that no layer initialises: the usual one of transformers


def reset_weights_(network: Network, seed: int = 0) -> list[str]:
    """Initialise all parameters anew, in place, each layer by its own type's initialisation.

    Layers of PyTorch have `reset_parameters`; a line becomes the identity. A parameter that stands
    by itself, such as a table of positions or what a layer has beside those of its type, is drawn
    from a normal distribution of deviation 0.02, cut at two units; if it has but one dimension of
    more than one entry, a scale starts at 1 and anything else at 0. Buffers that no layer resets,
    such as indices, stay. Frozen parameters are trained from now on, as a note says.

    Args:
        network: on the CPU, so that the same seed gives the same weights everywhere.
        seed: decides them.

    Returns:
        The names of the parameters that stand by themselves.

    Example:
        >>> import shoal, torch
        >>> from shoal.network.fresh import reset_weights_
        >>> net = shoal.capture(shoal.models.digits_resnet(), torch.randn(2, 1, 8, 8)).copy()
        >>> reset_weights_(net, seed=1)
        []
    """
    cpu = torch.device("cpu")
    alone: list[str] = []
    trained = [p for p in network.parameters() if p.is_floating_point()]
    with preserved_rng(cpu), torch.no_grad():
        seed_everything(derive_seed("weights", seed), cpu)
        for parameter in trained:
            parameter.fill_(math.nan)  # what a layer's own initialisation leaves so is not its
        for path, module in network.named_modules():
            reset = _reset_of(module)
            if reset is not None:
                reset()
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_floating_point() and bool(parameter.isnan().any()):
                    _fill(name, parameter)
                    alone.append(f"{path}.{name}".removeprefix("."))
    network.zero_grad(set_to_none=True)
    _train_all(network, trained)
    return alone


def _train_all(network: Network, parameters: Sequence[nn.Parameter]) -> None:
    """Let all parameters be trained: random ones that stay so would be of no use."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    if frozen:
        note = f"{len(frozen)} frozen parameters were initialised anew, and are trained"
        network._keep(notes=(*network.notes, note))


def _reset_of(module: nn.Module) -> Callable[[], object] | None:
    """Return what initialises a layer anew; None if its type has nothing of the kind."""
    named = (getattr(module, name, None) for name in ("reset_parameters", "_reset_parameters"))
    return next((found for found in named if callable(found)), None)


def _fill(name: str, parameter: Tensor) -> None:
    if sum(size > 1 for size in parameter.shape) > 1:
        nn.init.trunc_normal_(parameter, std=_DEVIATION, a=-2 * _DEVIATION, b=2 * _DEVIATION)
    else:
        parameter.fill_(1.0 if any(word in name for word in _SCALES) else 0.0)
