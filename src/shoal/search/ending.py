"""The end of a search: the result merged, and what that gains on this machine.

Four networks are timed in the same rounds: the dense one as given and with its batch norms folded,
the result as it was trained and merged. Folding alone is no gain of a shallower network, so every
ratio is against the dense network folded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.errors import ShoalError
from shoal.measure import InRuntime, SideBySide, count_params
from shoal.merge.merge import merge_
from shoal.merge.report import MergeReport
from shoal.network import Network
from shoal.runtimes import EAGER, RUNTIMES
from shoal.search.records import LatencyReport

__all__ = ["BASELINE", "Ending", "end_of", "folded"]

BASELINE = "dense_folded"
_SECONDS = 2.0  # of each of the two measurements: what users read first must not be a fluke


@dataclass(frozen=True)
class Ending:
    """What is made of a search's result.

    Attributes:
        merged: the result, merged.
        report: what was merged, what was kept and why, and the proof that nothing changed.
        latency: of dense and result, as they are and merged.
    """

    merged: Network
    report: MergeReport
    latency: LatencyReport


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
) -> LatencyReport:
    own = next(one for one in found if one.runtime == report.runtime)
    if own.missing:
        raise ShoalError(next(iter(own.missing.values())))
    return LatencyReport(
        batch=batch,
        runtime=report.runtime,
        dense_ms=own.latencies["dense"].median_ms,
        dense_folded_ms=own.latencies[BASELINE].median_ms,
        result_ms=own.latencies["result"].median_ms,
        result_merged_ms=own.latencies["result_merged"].median_ms,
        speedup=own.ratio("result_merged").to_dict(),
        runtimes=tuple(one.to_dict() for one in found),
        merge_max_rel_error=report.max_rel_error,
        merged_depth=report.depth_after,
        merged_macs=report.macs_after,
        merged_params=count_params(merged),
    )


def folded(network: Network, batch: int = 1) -> Network:
    """Return a copy in eval mode with its batch norms and lines folded into their neighbours."""
    copy = network.copy().eval()
    merge_(copy, policy="fold", batch=batch)
    return copy
