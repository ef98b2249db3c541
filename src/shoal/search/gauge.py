"""What measures the networks of a search: quality, work and latency, and what removals save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shoal.measure import Latency, Ratio, benchmark, latency_in, latency_ratio
from shoal.merge.merge import merge_
from shoal.merge.padding import find_movable_paddings
from shoal.modes import device_of
from shoal.network import Network
from shoal.runtimes import EAGER
from shoal.search.data import Data
from shoal.search.ending import Ending, end_of, folded
from shoal.search.moves import Move, saved_ms
from shoal.training import evaluate

__all__ = ["Figures", "Gauge", "MachineGauge"]


@dataclass(frozen=True)
class Figures:
    """What a network costs: work, size and time.

    Attributes:
        macs: multiply-accumulates of one sample.
        params: parameter elements.
        depth: layers with weights on the longest path.
        latency_ms: median time of a call, in milliseconds.
    """

    macs: int
    params: int
    depth: int
    latency_ms: float


class Gauge(Protocol):
    """Measures for a search; a test hands in one that takes no time (`compress(gauge=)`)."""

    def quality(self, network: Network, data: Iterable[Any]) -> float:
        """Return the task's quality on data, in points: accuracy in percent."""
        ...

    def measure(self, network: Network) -> Figures:
        """Return what a network costs as it is."""
        ...

    def ratio(self, dense: Network, network: Network) -> Ratio:
        """Return the latency of dense, folded, over the network's, merged."""
        ...

    def saved_ms(
        self, network: Network, moves: Sequence[Move], how: str
    ) -> tuple[float, Mapping[str, float]]:
        """Return the network's latency and, by the moves' titles, what each one saves of it."""
        ...

    def paddings(self, network: Network) -> list[tuple[str, str]]:
        """Return the pairs of convolutions that would merge faster if their padding were moved."""
        ...

    def ending(self, dense: Network, best: Network) -> Ending:
        """Return the result merged, and measured beside dense."""
        ...


class MachineGauge:
    """Measures on this machine.

    Args:
        data: of the search.
        batch: batch size at which latency is measured.
        runtime: where it is measured to decide anything.
        evaluate: returns the quality of a network in points in place of the accuracy.
    """

    def __init__(
        self,
        data: Data,
        batch: int = 1,
        runtime: str = EAGER,
        evaluate: Callable[[Network, Iterable[Any]], float] | None = None,
    ) -> None:
        self._data = data
        self._batch = batch
        self._runtime = runtime
        self._evaluate = evaluate
        self._dense: tuple[Network, Network] | None = None  # as it is, and folded

    def quality(self, network: Network, data: Iterable[Any]) -> float:
        """Return the accuracy in percent, or what the user's own function returns."""
        if self._evaluate is not None:
            return float(self._evaluate(network, data))
        return evaluate(network, data).top1

    def measure(self, network: Network) -> Figures:
        """Return work, size and latency of a network as it is."""
        inputs = self._data.example(self._batch, device_of(network))
        options: dict[str, Any] = {"min_seconds": 0.3, "max_seconds": 20.0}
        found = benchmark(network, inputs, runtime=self._runtime, **options)
        return Figures(found.macs, found.params, found.depth or 0, found.latency.median_ms)

    def ratio(self, dense: Network, network: Network) -> Ratio:
        """Return dense's latency, folded, over the network's, merged, from the same rounds.

        Folding batch norms alone is no gain of a shallower network.
        """
        if self._dense is None or self._dense[0] is not dense:
            self._dense = dense, folded(dense, self._batch)
        merged = network.copy()
        merge_(merged, batch=self._batch, runtime=self._runtime)
        inputs = self._data.example(self._batch, device_of(network))
        timed = self._timed({"dense": self._dense[1], "own": merged}, inputs)
        return latency_ratio(timed["dense"], timed["own"])

    def saved_ms(
        self, network: Network, moves: Sequence[Move], how: str
    ) -> tuple[float, Mapping[str, float]]:
        """Return the latency of the network merged, and what each move saves of it."""
        args, kwargs = network.example_inputs(self._batch)
        return saved_ms(network, moves, kwargs or args, how, self._runtime)

    def paddings(self, network: Network) -> list[tuple[str, str]]:
        """Return the pairs of convolutions that would merge faster if their padding were moved."""
        return find_movable_paddings(network, batch=self._batch, runtime=self._runtime)

    def ending(self, dense: Network, best: Network) -> Ending:
        """Return the result merged, and measured beside dense in every runtime."""
        inputs = self._data.example(self._batch, device_of(best))
        options: dict[str, Any] = {"batch": self._batch, "runtime": self._runtime}
        return end_of(dense, best, inputs, loader=self._data.val, **options)

    def _timed(self, networks: Mapping[str, Network], inputs: Any) -> dict[str, Latency]:
        return latency_in(self._runtime, networks, inputs, min_seconds=0.3, max_seconds=20.0)
