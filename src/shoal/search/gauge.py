"""What measures the networks of a search: quality, work and latency, and the end of it all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from shoal.data.batch import Batch, split_batch
from shoal.errors import ShoalError
from shoal.measure import InRuntime, Ratio, benchmark, count_params, latency_ratio, measure_latency
from shoal.merge.merge import merge_
from shoal.merge.padding import find_movable_paddings
from shoal.merge.report import MergeReport
from shoal.modes import device_of
from shoal.network import Network
from shoal.runtimes import EAGER, RUNTIMES
from shoal.search.moves import Move, saved_ms
from shoal.search.records import LatencyReport
from shoal.training import evaluate

_BASELINE = "dense_folded"
_SECONDS = 2.0  # of each of the two measurements: what users read first must not be a fluke


@dataclass(frozen=True)
class Data:
    """The data of a search: batches to train on, to choose by, and to report."""

    train: Iterable[Any]  # scoring reads it without shuffling and augmentation, by `plain`
    val: Iterable[Any]
    test: Iterable[Any] | None = None

    def example(self, batch: int, device: torch.device) -> Any:
        """Return `batch` samples of the validation data, repeated if there are fewer."""
        whole = self._first

        def take(value: Tensor) -> Tensor:
            times = -(-batch // len(value))
            return value.repeat(times, *[1] * (value.dim() - 1))[:batch].to(device)

        if whole.kwargs:
            return {name: take(value) for name, value in whole.kwargs.items()}
        return tuple(map(take, whole.args))

    @cached_property
    def _first(self) -> Batch:
        return split_batch(next(iter(self.val)))


@dataclass(frozen=True)
class Figures:
    """What a network costs: MACs of one sample, parameters, depth, median time of a call."""

    macs: int
    params: int
    depth: int
    latency_ms: float


@dataclass(frozen=True)
class Ending:
    """What is made of a search's result: merged, what that did, and the latencies around it."""

    merged: Network
    report: MergeReport
    latency: LatencyReport


class Gauge:
    """Measures on this machine; a subclass that takes no time may stand in (`compress(gauge=)`).

    Latency decides at one batch size in one runtime; `evaluate` takes the place of the accuracy.
    """

    def __init__(
        self,
        data: Data,
        batch: int = 1,
        runtime: str = EAGER,
        evaluate: Callable[[Network, Iterable[Any]], float] | None = None,
    ) -> None:
        self._data = data
        self._evaluate = evaluate
        self._where: dict[str, Any] = {"batch": batch, "runtime": runtime}
        self._dense: tuple[Network, Network] | None = None  # as it is, and folded

    def quality(self, network: Network, data: Iterable[Any]) -> float:
        """Return the task's quality on data, in points: accuracy in percent."""
        if self._evaluate is not None:
            return float(self._evaluate(network, data))
        return evaluate(network, data).top1

    def measure(self, network: Network) -> Figures:
        """Return what a network costs as it is."""
        runtime, inputs = self._where["runtime"], self._inputs(network)
        found = benchmark(network, inputs, runtime=runtime, min_seconds=0.3, max_seconds=20.0)
        return Figures(found.macs, found.params, found.depth or 0, found.latency.median_ms)

    def ratio(self, dense: Network, network: Network) -> Ratio:
        """Return the latency of dense, folded, over the network's, merged, from the same rounds.

        Folding batch norms alone is no gain of a shallower network.
        """
        if self._dense is None or self._dense[0] is not dense:
            self._dense = dense, folded(dense, self._where["batch"])
        merged = network.copy()
        merge_(merged, **self._where)
        both, runtime = {"dense": self._dense[1], "own": merged}, self._where["runtime"]
        inputs = self._inputs(network)
        timed = measure_latency(both, inputs, runtime=runtime, min_seconds=0.3, max_seconds=20.0)
        return latency_ratio(timed["dense"], timed["own"])

    def saved_ms(
        self, network: Network, moves: Sequence[Move], how: str
    ) -> tuple[float, Mapping[str, float]]:
        """Return the network's latency merged, and what each move, by its title, saves of it."""
        args, kwargs = network.example_inputs(self._where["batch"])
        return saved_ms(network, moves, kwargs or args, how, self._where["runtime"])

    def paddings(self, network: Network) -> list[tuple[str, str]]:
        """Return the pairs of convolutions that would merge faster if their padding were moved."""
        return find_movable_paddings(network, **self._where)

    def ending(self, dense: Network, best: Network) -> Ending:
        """Return the result merged, and measured beside dense in every runtime."""
        return end_of(dense, best, self._inputs(best), loader=self._data.val, **self._where)

    def _inputs(self, network: Network) -> Any:
        return self._data.example(self._where["batch"], device_of(network))


def end_of(
    dense: Network,
    best: Network,
    inputs: Any,
    *,
    batch: int,
    runtime: str = EAGER,
    loader: Iterable[Any] | None = None,
) -> Ending:
    """Merge the result of a search, and measure it beside the dense network; both stay as they are.

    Four networks are timed in the same rounds: dense as given and with its batch norms folded, the
    result as it was trained and merged. Folding alone is no gain of a shallower network, so every
    ratio is against the dense network folded. The loader gives real inputs to compare the outputs
    on, before and after merging.

    Raises:
        ShoalError: a network cannot be exported for the runtime that decides.
    """
    merged = best.copy()
    report = merge_(merged, loader, batch=batch, runtime=runtime)
    networks = {"dense": dense, _BASELINE: folded(dense, batch), "result": best}
    networks["result_merged"] = merged
    found = [
        InRuntime(name, networks, inputs).measure(
            inputs, _BASELINE, min_seconds=_SECONDS, max_seconds=30.0
        )
        for name in RUNTIMES.names()
    ]
    own = next(one for one in found if one.runtime == report.runtime)
    if own.missing:
        raise ShoalError(next(iter(own.missing.values())))
    latency = LatencyReport(
        batch=batch,
        runtime=report.runtime,
        dense_ms=own.latencies["dense"].median_ms,
        dense_folded_ms=own.latencies[_BASELINE].median_ms,
        result_ms=own.latencies["result"].median_ms,
        result_merged_ms=own.latencies["result_merged"].median_ms,
        speedup=own.ratio("result_merged").to_dict(),
        runtimes=tuple(one.to_dict() for one in found),
        merge_max_rel_error=report.max_rel_error,
        merged_depth=report.depth_after,
        merged_macs=report.macs_after,
        merged_params=count_params(merged),
    )
    return Ending(merged, report, latency)


def folded(network: Network, batch: int = 1) -> Network:
    """Return a copy in eval mode with its batch norms and lines folded into their neighbours."""
    copy = network.copy().eval()
    merge_(copy, policy="fold", batch=batch)
    return copy
