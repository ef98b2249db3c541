"""What measures the networks of a search: quality, work and latency."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from shoal.data.batch import Batch, first_batch
from shoal.measure import (
    Batches,
    Ratio,
    Timing,
    benchmark,
    deployments,
    latency_ratio,
    measure_in,
    sized,
    together,
)
from shoal.merge.merge import merge_
from shoal.merge.padding import find_movable_paddings
from shoal.modes import device_of
from shoal.network import Network
from shoal.network.inputs import map_tensors, repeat_rows
from shoal.runtimes import EAGER
from shoal.search.ending import Ending, end_of, folded
from shoal.search.int8 import Int8Maker
from shoal.search.moves import Move, saved_ms
from shoal.tasks import Task, find_task
from shoal.training import Evaluation, evaluate

_BRIEFLY = Timing(min_seconds=0.3, max_seconds=20.0)


@dataclass(frozen=True)
class Data:
    """The data of a search: batches to train on, to choose by, and to report."""

    train: Iterable[Any]  # scoring reads it without shuffling and augmentation, by `plain`
    val: Iterable[Any]
    test: Iterable[Any] | None = None

    def example(self, batch: int, device: torch.device) -> Any:
        """Return `batch` samples of the validation data, repeated if there are fewer."""
        given = self._first.kwargs or self._first.args
        return map_tensors(lambda value: repeat_rows(value, batch).to(device), given)

    @cached_property
    def _first(self) -> Batch:
        found = first_batch(self.val)
        assert found is not None  # what begins a search has seen to it
        return found


@dataclass(frozen=True)
class Figures:
    """What a network costs: MACs and rectifier evaluations of one sample, its size, its time."""

    macs: int
    params: int
    depth: int
    latency_ms: float  # median of a call
    relus: int | None = None  # rectifier evaluations


class Gauge:
    """Measures on this machine; a subclass that takes no time may stand in (`compress(gauge=)`).

    Latency decides in each runtime at each batch size; the task says what quality is. The result is
    measured in all other installed runtimes too, unless `everywhere` is false.
    """

    def __init__(
        self,
        data: Data,
        batch: Batches = 1,
        runtime: str | Sequence[str] = EAGER,
        task: Task | None = None,
        everywhere: bool = True,
    ) -> None:
        self._data = data
        self._everywhere = everywhere
        self._task = task or find_task()
        self._judged: Evaluation | None = None  # the last one on validation data
        self._where = deployments(runtime, batch)
        self._batches = tuple(dict.fromkeys(one.batch for one in self._where))
        self._runtimes = tuple(dict.fromkeys(one.name for one in self._where))
        self._dense: tuple[Network, Network] | None = None  # as it is, and folded

    def quality(self, network: Network, data: Iterable[Any]) -> float:
        """Return the task's quality on data, in points."""
        found = evaluate(network, data, task=self._task)
        if data is self._data.val:
            self._judged = found
        return found.quality

    def doubts(self, dense: float) -> list[str]:
        """Return what to say of the dense network's quality, once that was measured."""
        name, found = self._task.quality_name, self._judged
        if self._task.judge is not None:
            if not 0.0 < dense <= 1.0:
                return []
            return [
                f"{name} of the dense network is {dense:.3g}, and max_drop is in the same points: "
                "if evaluate returns a share of 1, let it return percent"
            ]
        if found is None or found.chance is None or found.samples is None:
            return []
        if dense > found.chance + 50.0 / math.sqrt(found.samples):  # the error of a share, at most
            return []
        more = "hardly" if dense > found.chance else "no"
        return [
            f"{name} of the dense network is {dense:.1f} % on validation data, {more} more than "
            f"the {found.chance:.1f} % that one answer to every sample reaches: check its weights, "
            "and that the data are labelled and normalised as in its training; if it was never "
            "trained, dense_epochs=20 trains it first"
        ]

    def measure(self, network: Network) -> Figures:
        """Return what a network costs as it is; its latency is where the first that decides is."""
        first = self._where[0]
        inputs = sized(self._inputs(network), first.batch)
        found = benchmark(network, inputs, runtime=first.runtime, **_BRIEFLY)
        latency = found.latency.median_ms
        return Figures(found.macs, found.params, found.depth or 0, latency, found.relus)

    def ratio(self, dense: Network, network: Network) -> Ratio:
        """Return the latency of dense, folded, over the network's, merged, from the same rounds.

        Folding batch norms alone is no gain of a shallower network. Where several runtimes or batch
        sizes decide, each counts alike (`together`).
        """
        if self._dense is None or self._dense[0] is not dense:
            self._dense = dense, folded(dense)
        merged = network.copy()
        merge_(merged, batch=self._batches, runtime=self._runtimes)
        both = {"dense": self._dense[1], "own": merged}
        timed = measure_in(self._where, both, self._inputs(network), **_BRIEFLY)
        return together([latency_ratio(one["dense"], one["own"]) for one in timed])

    def saved_ms(
        self, network: Network, moves: Sequence[Move], how: str
    ) -> tuple[float, Mapping[str, float], str]:
        """Return the network's latency merged, and what each move, by its title, saves of it.

        The third value says in words why MACs decided and not the clock; it is "" where that did.
        """
        inputs = network.example(max(self._batches))
        return saved_ms(network, moves, inputs, how, runtime=self._runtimes, batch=self._batches)

    def paddings(self, network: Network) -> list[tuple[str, str]]:
        """Return the pairs of convolutions that would merge faster if their padding were moved."""
        return find_movable_paddings(network, batch=self._batches, runtime=self._runtimes)

    def ending(
        self,
        dense: Network,
        best: Network,
        stage: Callable[[str], object] = lambda text: None,
        int8: Path | None = None,
    ) -> Ending:
        """Return the result merged, and measured beside dense.

        `stage` is told in words what begins; `int8` is a folder for the result in int8, if it is to
        be quantized.
        """
        data = self._data
        loaders = data.train, data.val, data.test
        maker = None if int8 is None else Int8Maker(*loaders, self.quality, int8, self._task)
        return end_of(
            dense,
            best,
            lambda batch: self._data.example(batch, device_of(best)),
            batches=self._batches,
            runtimes=self._runtimes,
            everywhere=self._everywhere,
            loader=self._data.val,
            stage=stage,
            int8=maker,
        )

    def _inputs(self, network: Network) -> Any:
        return self._data.example(max(self._batches), device_of(network))
