"""Criteria that look at a branch's weights and at no data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import ConfigError
from shoal.importance.candidates import block_candidates
from shoal.importance.criteria import criteria
from shoal.importance.scores import Scores
from shoal.importance.stages import relative_to_stage
from shoal.network import Network
from shoal.network.blocks import Block
from shoal.network.weights import is_weighted, own_tensors

__all__ = ["L1", "L2", "BatchNormScale"]


class _Magnitude(ABC):
    """A score from weights, ranked within stages by default.

    Args:
        scope: "stage" divides each score by the mean of its stage, so that blocks of all stages
            can be ranked together; "global" compares the bare values, which follow the stage
            (Jordao et al. 2023, Figure 3) and so always pick the same one.

    Raises:
        ConfigError: `scope` has another value.
    """

    unit = "block"
    name: str

    def __init__(self, *, scope: str = "stage") -> None:
        if scope not in ("stage", "global"):
            raise ConfigError(f"scope is '{scope}': choose 'stage' or 'global'")
        self.scope = scope

    @abstractmethod
    def of(self, network: Network, block: Block) -> float:
        """Return the bare score of one block."""

    def score(
        self,
        network: Network,
        loader: Iterable[Any] = (),
        *,
        samples: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Scores:
        """Score the removable blocks; the data are not touched."""
        values = {b.name: self.of(network, b) for b in block_candidates(network)}
        details = {name: {"value": value} for name, value in values.items()}
        if self.scope == "stage":
            values = relative_to_stage(values, network)
        return Scores(self.name, values, 0, details=details)


@criteria.register("l1")
class L1(_Magnitude):
    """The mean absolute weight of the branch's convolutions and linear layers.

    After Jordao et al. 2023, A.2. `details` holds the bare value, whatever the scope.
    """

    name = "l1"

    def of(self, network: Network, block: Block) -> float:
        """Return the bare score of one block."""
        return _mean(network, block, torch.abs)


@criteria.register("l2")
class L2(_Magnitude):
    """The mean square weight of the branch's convolutions and linear layers; as l1, squared."""

    name = "l2"

    def of(self, network: Network, block: Block) -> float:
        """Return the bare score of one block."""
        return _mean(network, block, torch.square)


@criteria.register("bn_scale")
class BatchNormScale(_Magnitude):
    """The mean absolute scale γ of the branch's last batch norm (after Liu et al. 2017)."""

    name = "bn_scale"

    def of(self, network: Network, block: Block) -> float:
        """Return the bare score of one block.

        Raises:
            ConfigError: the branch has no batch norm with a scale.
        """
        for node in reversed(block.branch):
            if node.op != "call_module":
                continue
            module = network.get_submodule(str(node.target))
            scaled = getattr(module, "weight", None)
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and scaled is not None:
                return float(scaled.detach().double().abs().mean())
        raise ConfigError(
            f"block '{block.name}' has no batch norm with a scale: choose another criterion "
            "than bn_scale"
        )


def _mean(network: Network, block: Block, of: Callable[[Tensor], Tensor]) -> float:
    """Return the mean of a function over all weights of the branch; 0 if it has none."""
    weights = _weights(network, block)
    total = sum(float(of(weight.detach().double()).sum()) for weight in weights)
    return total / max(1, sum(weight.numel() for weight in weights))


def _weights(network: Network, block: Block) -> Sequence[Tensor]:
    """Return the weights, without biases, of the branch's layers."""
    used: dict[str, Tensor] = {}
    for node in block.branch:
        if is_weighted(node, network):
            used |= own_tensors(node, network)
    return list({id(w): w for w in used.values() if w.dim() > 1}.values())
