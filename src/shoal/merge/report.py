"""What a merge did, and what it left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shoal.errors import PlanError
from shoal.runtimes import EAGER


@dataclass(frozen=True)
class Merged:
    """A stretch that became one layer, or vanished."""

    name: str  # path of the new layer; of the last old one where nothing is left
    layers: tuple[str, ...]  # the old layers, in order
    before: str  # the old layers in words
    after: str  # the new layer in words; "nothing" where it vanished
    weighted_before: int  # how many layers with weights there were
    macs_before: int  # multiply-accumulates of the old layers for one sample
    macs_after: int  # of the new layer
    # Measured latency of the old layers with scales and shifts folded, and of the new layer; None
    # where only scales and shifts were folded, which is not measured
    latency_before_ms: float | None
    latency_after_ms: float | None
    region: str = ""  # the region it lies in, as `Boundary` names it


@dataclass(frozen=True)
class Kept:
    """A linear stretch that was left as it is, and why."""

    layers: tuple[str, ...]  # in order
    reason: str  # why it was not merged with what follows it, or into one layer
    region: str = ""


@dataclass(frozen=True)
class Boundary:
    """Where a region begins and ends."""

    region: str  # its name, that of its last node
    layers: tuple[str, ...]  # what lies in it, in order
    begins: str  # why it does not begin earlier
    ends: str  # why it goes no further


@dataclass(frozen=True)
class MergeReport:
    """What `merge_` did to a network.

    Attributes:
        merged: what became one layer, scales and shifts folded into their layers included.
        kept: linear neighbours that were not merged, with the reason.
        boundaries: for each region, what begins and what ends it.
        max_rel_error: largest relative error of the outputs, real and random inputs.
        max_rel_error_float64: the same with both networks in float64 before the merged weights are
            rounded to the network's own type; None where it was not computed.
        checked_inputs: how many batches the outputs were compared on.
        macs_before, macs_after: multiply-accumulates of one sample.
        depth_before, depth_after: layers with weights on the longest path.
        latency_before_ms: median latency of the network with scales and shifts folded; None where
            nothing beyond folding was done.
        latency_after_ms: of the merged network, from the same rounds.
        batch: batch size of the latencies.
        runtime: where they were measured, "eager" or "onnxruntime".
    """

    merged: list[Merged]
    kept: list[Kept]
    boundaries: list[Boundary]
    max_rel_error: float
    max_rel_error_float64: float | None
    checked_inputs: int
    macs_before: int
    macs_after: int
    depth_before: int
    depth_after: int
    latency_before_ms: float | None
    latency_after_ms: float | None
    batch: int
    runtime: str = EAGER

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return dict(json.loads(json.dumps(asdict(self))))  # lists for tuples

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MergeReport:
        """Read what `to_dict` wrote; raises `PlanError` if it is something else."""
        kinds = {"merged": Merged, "kept": Kept, "boundaries": Boundary}
        try:
            parts = {name: [_read(kind, item) for item in data[name]]
                     for name, kind in kinds.items()}  # fmt: skip
            return cls(**{**data, **parts})
        except (KeyError, TypeError) as error:
            raise PlanError(f"the record of the merge cannot be read ({error})") from error

    def __str__(self) -> str:
        lines = [
            f"{len(self.merged)} merged, {len(self.kept)} kept; depth {self.depth_before} → "
            f"{self.depth_after}; MACs {self.macs_before:,} → {self.macs_after:,}; "
            f"largest relative error {self.max_rel_error:.1e}"
        ]
        for item in self.merged:
            timing = ""
            if item.latency_before_ms is not None and item.latency_after_ms is not None:
                timing = f", {item.latency_before_ms:.3f} → {item.latency_after_ms:.3f} ms"
            lines.append(f"  {item.name}: {item.before} → {item.after}{timing}")
        lines += [f"  kept {' + '.join(k.layers)}: {k.reason}" for k in self.kept]
        return "\n".join(lines)


def _read(kind: type[Any], item: Mapping[str, Any]) -> Any:
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in item.items()})
