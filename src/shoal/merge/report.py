"""What a merge did, and what it left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from shoal.display import Shown
from shoal.errors import DamagedError, PlanError
from shoal.runtimes import EAGER
from shoal.schema import make


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


@dataclass(frozen=True, repr=False)
class MergeReport(Shown):
    """What `merge_` did to a network."""

    merged: list[Merged]  # scales and shifts folded into their layers included
    kept: list[Kept]  # linear neighbours that were not merged
    boundaries: list[Boundary]  # of each region
    max_rel_error: float  # the largest of the outputs, on real and random inputs
    # The same with both networks in float64 before the merged weights are rounded to the network's
    # own type; None where it was not computed
    max_rel_error_float64: float | None
    checked_inputs: int  # how many batches the outputs were compared on
    macs_before: int  # multiply-accumulates of one sample
    macs_after: int
    depth_before: int  # layers with weights on the longest path
    depth_after: int
    # Medians from the same rounds, scales and shifts folded, and merged, summed over the runtimes
    # and batch sizes; None where nothing beyond folding was done
    latency_before_ms: float | None
    latency_after_ms: float | None
    batch: int | tuple[int, ...]  # batch size of the latencies, or sizes
    runtime: str = EAGER  # where they were measured; several with commas between them
    # Why the latencies are not to be trusted, so that no merge was undone by them; else ""
    latency_doubt: str = ""
    # Why layers could not be timed, so that their work decided what to merge; else ""
    layers_doubt: str = ""

    shown_by: ClassVar[str] = "shoal.report.notebook:merge_html"

    def __repr__(self) -> str:
        """Return the outcome in one line."""
        return f"<merge: {self._head()}>"

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
            whole: MergeReport = _read(cls, {**data, **parts}, lists=tuple(kinds))
            return whole
        except (KeyError, TypeError, DamagedError) as error:
            raise PlanError(f"the record of the merge cannot be read ({error})") from error

    def _head(self) -> str:
        return (
            f"{len(self.merged)} merged, {len(self.kept)} kept; depth {self.depth_before} → "
            f"{self.depth_after}; MACs {self.macs_before:,} → {self.macs_after:,}; "
            f"largest relative error {self.max_rel_error:.1e}"
        )

    def __str__(self) -> str:
        lines = [self._head()]
        for item in self.merged:
            timing = ""
            if item.latency_before_ms is not None and item.latency_after_ms is not None:
                timing = f", {item.latency_before_ms:.3f} → {item.latency_after_ms:.3f} ms"
            lines.append(f"  {item.name}: {item.before} → {item.after}{timing}")
        lines += [f"  kept {' + '.join(k.layers)}: {k.reason}" for k in self.kept]
        return "\n".join(lines)


def _read(kind: type[Any], item: Mapping[str, Any], lists: tuple[str, ...] = ()) -> Any:
    """Return a record of JSON values; what is a list there is a tuple, but for `lists`."""
    plain = {k: tuple(v) if isinstance(v, list) and k not in lists else v for k, v in item.items()}
    return make(kind, plain)
