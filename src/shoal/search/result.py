"""What a search found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.merge.report import MergeReport
from shoal.network import Network, Plan
from shoal.search.records import Metrics, Step

__all__ = ["Result"]


@dataclass(frozen=True, repr=False)
class Result:
    """What a search found.

    Attributes:
        model: the last network whose accuracy is within the allowed drop, in eval mode; it can be
            trained on.
        merged: the same, merged: what to use and to export.
        merge: what was merged, and what was kept and why.
        steps: all steps, the dense network (0) first.
        dense: figures of the dense network.
        final: figures of `model`.
        latency: of dense and result, as they are and merged, from the same rounds; see `Ending`.
        removed: how many rectifiers, or blocks, are gone in `model`.
        total: how many there were that could have gone.
        unit: of these two, "rectifiers" or "blocks".
        stopped: why the search ended.
        notes: what the user should know.
        energy: of the search's training, and of an epoch and 1,000 inferences of dense and
            result, as `Meter.summary` has it; empty without a meter.
    """

    model: Network
    merged: Network
    merge: MergeReport
    steps: tuple[Step, ...]
    dense: Metrics
    final: Metrics
    latency: Mapping[str, Any]
    removed: int
    total: int
    unit: str
    stopped: str
    notes: tuple[str, ...]
    energy: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return the outcome in one line."""
        dense, final, gain = self.dense, self.final, self.latency["speedup"]
        return (
            f"<shoal result: {self.removed} of {self.total} {self.unit} removed; validation "
            f"{dense.top1_val:.2f} → {final.top1_val:.2f} %; merged, depth {dense.depth} → "
            f"{self.latency['merged_depth']} and {gain['median']:.2f} × ({gain['low']:.2f} to "
            f"{gain['high']:.2f}) as fast>"
        )

    @property
    def plan(self) -> Plan:
        """The operations that made `model` out of the original."""
        return self.model.plan
