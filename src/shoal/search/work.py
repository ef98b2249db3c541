"""What a network should take by its work: a cost model, for where the clock cannot be trusted.

    milliseconds = a · operations + b · MACs

with a, the cost of calling an operation, and b, that of a multiply-accumulate, fitted by least
squares, neither of them negative, to networks that were timed in the same runtime at the same batch
size. Of each its fastest round counts, which work beside disturbs least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from shoal.measure import count_macs
from shoal.network import Network
from shoal.network.inputs import Inputs


@dataclass(frozen=True)
class Work:
    """What a network does in one call."""

    operations: int  # calls of layers and functions
    macs: int  # multiply-accumulates of one sample

    @classmethod
    def of(cls, network: Network, inputs: Inputs) -> Self:
        """Count a network's work on a batch of inputs."""
        calls = sum(node.op in ("call_module", "call_function") for node in network.graph.nodes)
        return cls(calls, count_macs(network, inputs).total)


@dataclass(frozen=True)
class WorkModel:
    """Milliseconds that work takes."""

    per_operation: float
    per_mac: float

    @classmethod
    def fit(cls, works: Sequence[Work], milliseconds: Sequence[float]) -> Self:
        """Fit the model to networks of which work and time are known."""
        amounts = np.array([(work.operations, work.macs) for work in works], dtype=float)
        times, scale = np.asarray(milliseconds, dtype=float), np.maximum(amounts.max(axis=0), 1.0)
        units = amounts / scale
        fits = [np.linalg.lstsq(units, times, rcond=None)[0]]
        for one in range(2):  # by itself, where both together would make one negative
            alone = np.zeros(2)
            alone[one] = units[:, one] @ times / max(units[:, one] @ units[:, one], 1e-30)
            fits.append(alone)
        fits = [fit for fit in fits if (fit >= 0.0).all()]
        best = min(fits, key=lambda fit: float(np.square(units @ fit - times).sum())) / scale
        return cls(float(best[0]), float(best[1]))

    def ms(self, work: Work) -> float:
        """Return the milliseconds that this work should take."""
        return self.per_operation * work.operations + self.per_mac * work.macs
