"""The end of a search: the result merged, and what that gains on this machine.

Four networks are timed in the same rounds: the dense one as given and with its batch norms folded,
the result as it was trained and merged. Folding alone is no gain of a shallower network, so every
ratio is against the dense network folded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.errors import ShoalError
from shoal.measure import InRuntime, SideBySide, count_params
from shoal.merge.merge import merge_
from shoal.merge.report import MergeReport
from shoal.network import Network
from shoal.runtimes import EAGER, RUNTIMES

__all__ = ["BASELINE", "Ending", "end_of", "folded"]

BASELINE = "dense_folded"
_SECONDS = 2.0  # of each of the two measurements: what users read first must not be a fluke


@dataclass(frozen=True)
class Ending:
    """What is made of a search's result.

    Attributes:
        merged: the result, merged.
        report: what was merged, what was kept and why, and the proof that nothing changed.
        latency: JSON values. `dense_ms`, `dense_folded_ms`, `result_ms` and `result_merged_ms` in
            `runtime` at `batch`, in milliseconds; `speedup`, of merged over dense folded;
            `runtimes`, the same networks in each runtime with each one's ratio, as
            `SideBySide.to_dict` has it.
        energy: of training and inference, as `Meter.summary` has it; empty without a meter.
    """

    merged: Network
    report: MergeReport
    latency: Mapping[str, Any]
    energy: Mapping[str, Any] = field(default_factory=dict)


def end_of(
    dense: Network,
    best: Network,
    inputs: Any,
    *,
    batch: int,
    runtime: str = EAGER,
    loader: Iterable[Any] | None = None,
) -> Ending:
    """Merge the result of a search, and measure it beside the dense network.

    Args:
        dense: the dense network; it is left as it is.
        best: the result; likewise.
        inputs: one batch, of the size `batch`.
        batch: the batch size at which latency decides what is merged.
        runtime: where it is measured for that.
        loader: real inputs, for the comparison before and after merging.

    Raises:
        ShoalError: a network cannot be exported for the runtime that decides.
    """
    merged = best.copy()
    report = merge_(merged, loader, batch=batch, runtime=runtime)
    networks = {
        "dense": dense,
        BASELINE: folded(dense, batch),
        "result": best,
        "result_merged": merged,
    }
    found = [
        InRuntime(name, networks, inputs).measure(
            inputs, BASELINE, min_seconds=_SECONDS, max_seconds=30.0
        )
        for name in RUNTIMES.names()
    ]
    return Ending(merged, report, _latency(found, merged, report, batch))


def _latency(
    found: Sequence[SideBySide], merged: Network, report: MergeReport, batch: int
) -> dict[str, Any]:
    own = next(one for one in found if one.runtime == report.runtime)
    if own.missing:
        raise ShoalError(next(iter(own.missing.values())))
    return {
        "batch": batch,
        "runtime": report.runtime,
        **{f"{name}_ms": latency.median_ms for name, latency in own.latencies.items()},
        "speedup": own.ratio("result_merged").to_dict(),
        "runtimes": [one.to_dict() for one in found],
        "merge_max_rel_error": report.max_rel_error,
        "merged_depth": report.depth_after,
        "merged_macs": report.macs_after,
        "merged_params": count_params(merged),
    }


def folded(network: Network, batch: int = 1) -> Network:
    """Return a copy in eval mode with its batch norms and lines folded into their neighbours."""
    copy = network.copy().eval()
    merge_(copy, policy="fold", batch=batch)
    return copy
