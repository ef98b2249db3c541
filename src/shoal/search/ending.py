"""The end of a search: the result merged, and measured beside dense wherever it may be deployed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.errors import ShoalError
from shoal.measure import InRuntime, SideBySide, Timing, count_params
from shoal.merge.merge import merge_
from shoal.merge.report import MergeReport
from shoal.network import Network
from shoal.network.inputs import Inputs
from shoal.runtimes import EAGER, Runner, installed
from shoal.runtimes.runtime import open_runtime
from shoal.search.figures import is_slower
from shoal.search.int8 import Int8Maker
from shoal.search.layers import Layer, RegionTime, layers_before_and_after, region_times
from shoal.search.records import Int8, LatencyReport

_BASELINE, _RESULT = "dense_folded", "result_merged"
_DECIDES = Timing(min_seconds=2.0, max_seconds=30.0)  # what users read first must not be a fluke
_OTHER = Timing(min_seconds=1.0, max_seconds=10.0)
_PATIENCE = 120.0  # seconds after which no measurement that decides nothing is begun


@dataclass(frozen=True)
class Ending:
    """What is made of a search's result: merged, what that did, and the latencies around it."""

    merged: Network
    report: MergeReport
    latency: LatencyReport
    int8: tuple[Int8, ...] | None = None  # the result in int8; None if that was not asked for
    notes: tuple[str, ...] = ()  # what the user should know
    layers: tuple[Layer, ...] = ()  # of the dense network, with what became of each
    merged_layers: tuple[Layer, ...] = ()
    regions: tuple[RegionTime, ...] = ()


# Long because its arguments are explained, and each figure of the report is named.
def end_of(
    dense: Network,
    best: Network,
    inputs: Callable[[int], Inputs],
    *,
    batches: Sequence[int] = (1,),
    runtimes: Sequence[str] = (EAGER,),
    everywhere: bool = True,
    loader: Iterable[Any] | None = None,
    stage: Callable[[str], object] = lambda text: None,
    int8: Int8Maker | None = None,
) -> Ending:
    """Merge the result of a search, and measure it beside the dense network; both stay as they are.

    The dense network with its batch norms folded, which every deployment does by itself, and the
    result merged are timed in the same rounds in every installed runtime, at batch 1 and at the
    batch sizes that decided; where a runtime decided, so are both as they are. What is slower than
    dense is measured once more, beside the result with its batch norms folded only: that tells
    whether merging is to blame.

    Args:
        dense: the network before the search.
        best: the result, not merged.
        inputs: gives a batch of a size.
        batches: the batch sizes that decided, the one for the headline first.
        runtimes: the names of the runtimes that decided, likewise.
        everywhere: measure in all others that are installed too.
        loader: gives real inputs to compare the outputs on, before and after merging.
        stage: told in words what begins.
        int8: quantizes dense and result where a runtime can do that; both are then timed as well.

    Raises:
        ShoalError: a network cannot be made to run in a runtime that decides.
    """
    merged = best.copy()
    stage("merge")
    report = merge_(merged, loader, batch=batches, runtime=runtimes)
    pair = {_BASELINE: folded(dense), _RESULT: merged}
    joined = any(item.weighted_before > 1 for item in report.merged)
    beside = {"result_folded": folded(best)} if joined else {}
    asked = {open_runtime(name).name for name in runtimes}
    others = [name for name in installed() if everywhere and name not in asked]
    names = [*dict.fromkeys(runtimes), *others]
    small = _Quantized() if int8 is None else _quantized(int8, names, pair, stage)
    bench = _Bench(inputs, sorted({1, *batches}), beside, small.runners, stage)
    four = {"dense": dense, "result": best, **pair}
    found = [one for name in runtimes for one in bench.measure(name, four, _DECIDES)]
    deciding = [one for one in found if one.batch in batches]
    own = next(one for one in deciding if one.batch == batches[0])
    missing = [why for name, why in own.missing.items() if name in four]
    if missing:
        raise ShoalError(missing[0])
    deadline = time.perf_counter() + _PATIENCE
    for name in sorted(others, key=lambda name: open_runtime(name).slow_start):
        found += bench.measure(name, pair, _OTHER, deadline)
    latency = LatencyReport(
        batch=own.batch,
        runtime=own.runtime,
        dense_ms=own.latencies["dense"].median_ms,
        dense_folded_ms=own.latencies[_BASELINE].median_ms,
        result_ms=own.latencies["result"].median_ms,
        result_merged_ms=own.latencies[_RESULT].median_ms,
        speedup=own.ratio(_RESULT).to_dict(),
        runtimes=tuple({**one.to_dict(), "decides": one in deciding} for one in found),
        merge_max_rel_error=report.max_rel_error,
        merged_depth=report.depth_after,
        merged_macs=report.macs_after,
        merged_params=count_params(merged),
        dense_folded_params=count_params(pair[_BASELINE]),
    )
    figures = None if int8 is None else tuple(small.figures)
    stage("look at the layers")
    layers, merged_layers = layers_before_and_after(dense, best, merged, report, inputs(2))
    regions = region_times(pair[_BASELINE], merged, inputs(batches[0]))
    return Ending(
        merged, report, latency, figures, tuple(small.notes), layers, merged_layers, regions
    )


@dataclass(frozen=True)
class _Quantized:
    """Dense and result in int8, by runtime, and why there are none."""

    figures: list[Int8] = field(default_factory=list)
    runners: dict[str, Mapping[str, Runner]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _quantized(
    maker: Int8Maker,
    names: Iterable[str],
    pair: Mapping[str, Network],
    stage: Callable[[str], object],
) -> _Quantized:
    """Quantize in each runtime that can; what goes wrong becomes a note."""
    found = _Quantized()
    for name in names:
        runtime = open_runtime(name)
        if not runtime.int8:
            continue
        stage(f"quantize for {runtime.name}")
        try:
            figures, found.runners[name] = maker.make(runtime, *pair.values())
            if all(one.runtime != figures.runtime for one in found.figures):
                found.figures.append(figures)
        except ShoalError as error:
            found.notes.append(f"no int8 in {runtime.title or runtime.name}: {error}")
    return found


@dataclass(frozen=True)
class _Bench:
    """Measures networks in one runtime after the other."""

    inputs: Callable[[int], Inputs]
    sizes: Sequence[int]
    beside: Mapping[str, Network]  # also timed where the result is slower
    int8: Mapping[str, Mapping[str, Runner]]  # also timed, by the runtime as it was asked for
    stage: Callable[[str], object]

    def measure(
        self,
        runtime: str,
        networks: Mapping[str, Network | Runner],
        timing: Timing,
        deadline: float = float("inf"),
    ) -> list[SideBySide]:
        """Return the latencies at each size; those not begun before the deadline are missing."""
        networks = {**networks, **self.int8.get(runtime, {})}
        found: list[SideBySide] = []
        made: InRuntime | None = None
        for size in self.sizes:
            if time.perf_counter() > deadline:
                late = f"not measured: what decides nothing had taken {_PATIENCE:.0f} s by then"
                missing = dict.fromkeys(networks, late)
                found.append(SideBySide(runtime, _BASELINE, {}, missing, size))
                continue
            self.stage(f"measure in {runtime} at batch {size}")
            made = made or InRuntime(runtime, networks, self.inputs(2))
            found.append(made.measure(self.inputs(size), _BASELINE, **timing))
        slower = [one.batch for one in found if _RESULT in one.latencies and _slower(one)]
        if made is None or not slower:
            return found
        made.add(self.beside)
        for index, one in enumerate(found):
            if one.batch in slower:
                self.stage(f"measure again in {runtime} at batch {one.batch}")
                found[index] = made.measure(self.inputs(one.batch), _BASELINE, **timing)
        return found


def _slower(found: SideBySide) -> bool:
    return is_slower(found.ratio(_RESULT).to_dict())


def folded(network: Network) -> Network:
    """Return a copy in eval mode with its batch norms and lines folded into their neighbours."""
    copy = network.copy().eval()
    merge_(copy, policy="fold")
    return copy
