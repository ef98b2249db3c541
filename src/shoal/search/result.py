"""What a search found: its record, and the networks themselves."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.network import Network, Plan
from shoal.search.records import RunRecord

__all__ = ["Result"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Result(RunRecord):
    """What a search found.

    Attributes:
        model: the last network whose quality is within the allowed drop, in eval mode; it can be
            trained on.
        merged: the same, merged: what to use and to export.

    Example:
        >>> import shoal, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> batches = [(torch.randn(8, 4), torch.arange(8) % 3)]
        >>> result = shoal.compress(model, batches, batches, "easier", max_drop=100.0, epochs=0)
        >>> result.removed, result.total, result.plan.names("linearize")
        (1, 1, ['1'])
        >>> torch.allclose(result.merged(batches[0][0]), result.model(batches[0][0]), atol=1e-5)
        True
    """

    model: Network
    merged: Network

    def __repr__(self) -> str:
        """Return the outcome in one line."""
        dense, final, gain = self.dense, self.final, self.latency.speedup
        return (
            f"<shoal result: {self.removed} of {self.total} {self.unit} removed; validation "
            f"{dense.top1_val:.2f} → {final.top1_val:.2f} %; merged, depth {dense.depth} → "
            f"{self.latency.merged_depth} and {gain['median']:.2f} × ({gain['low']:.2f} to "
            f"{gain['high']:.2f}) as fast>"
        )

    @property
    def plan(self) -> Plan:
        """The operations that made `model` out of the original."""
        return self.model.plan
