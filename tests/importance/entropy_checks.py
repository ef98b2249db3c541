"""An entropy of the tests' own: stored activations and numpy, nothing of shoal's counting."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shoal.network import Network

Array = NDArray[np.float64]


def bits(p: Array) -> Array:
    """The binary entropy of probabilities."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(q > 0, -q * np.log2(q), 0.0) for q in (p, 1 - p)]
    return terms[0] + terms[1]


def stored_inputs(network: Network, batches: Iterable[Tensor]) -> dict[str, list[Array]]:
    """The input of every site for each batch, channels moved last."""
    kept: dict[str, list[Array]] = {}
    handles = []
    for site in network.sites:

        def keep(
            module: nn.Module,
            inputs: tuple[Tensor],
            name: str = site.name,
            c: int = site.channel_dim,
        ) -> None:
            z = inputs[0].detach().movedim(c, -1).double().numpy()
            kept.setdefault(name, []).append(z.reshape(-1, z.shape[-1]))

        handles.append(network.get_submodule(site.name).register_forward_pre_hook(keep))
    network.eval()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    for handle in handles:
        handle.remove()
    return kept


def pooled_entropy(z: Array, zeros: str = "exclude") -> float:
    """Equations 3 to 7 on all inputs of a layer, [positions, neurons]."""
    on, off = (z > 0).sum(0), (z < 0).sum(0)
    if zeros == "on":
        on = on + (z == 0).sum(0)
    if zeros == "off":
        off = off + (z == 0).sum(0)
    total = on + off
    p = np.where(total > 0, on / np.maximum(total, 1), 0.0)
    return float(bits(p).mean())


def published_entropy(batches: list[Array]) -> float:
    """What the published code reports: ON means z >= 0, entropies of batches averaged."""
    return float(np.mean([bits((z >= 0).mean(0)).mean() for z in batches]))
