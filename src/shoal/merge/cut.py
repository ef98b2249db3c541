"""Choose how to cut a region into layers: the cut with the least cost, by dynamic programming.

Any run of units that composes exactly may become one layer; the best cut is found over all
boundaries (Kim et al. 2023), by what layers cost here: measured once, remembered on disk. Where the
machine is too busy to tell, their work decides.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import fx, nn

from shoal.errors import DamagedError
from shoal.files import write_file
from shoal.measure import Deployment, measure_in, measure_latency
from shoal.merge.algebra import Inexact, in_a_row
from shoal.merge.conv_map import ConvMap
from shoal.merge.linear_ops import positions, tensor_shape
from shoal.merge.regions import Element
from shoal.merge.units import Segment, as_built, folded_units
from shoal.modes import device_of, dtype_of
from shoal.network import Network
from shoal.network.inputs import as_inputs
from shoal.runtimes import EAGER, Runtime, find_runtime
from shoal.schema import Amount, conform
from shoal.sealed import read_sealed, sealed_text

T = TypeVar("T")

_ATTEMPTS = 3  # to time a layer while no other work takes the processor


@dataclass(frozen=True)
class Prices:
    """By what a cut is chosen."""

    # The cost of a map on the tensor of a node, in milliseconds or any other unit
    of: Callable[[ConvMap, fx.Node], float]
    # Whether layers may become one at all; else only scales and shifts are folded
    joins: bool = True
    # Composed layers with more than this times the work of their parts are not considered: they
    # cannot pay, and measuring them takes long
    most_work: float = 4.0
    # A merged layer must cost less than this times its parts; what is nearer to them is within the
    # noise of a measurement
    margin: float = 0.97
    in_ms: bool = True  # whether costs are milliseconds, to be reported
    dearer: str = "slower"  # what a layer is that costs more
    # What the same costs in each deployment by itself, where `of` weighs several: layers that are
    # slower as one in any of them stay apart
    each: tuple[Prices, ...] = ()


def best_cut(chain: Sequence[Element], prices: Prices) -> list[Segment]:
    """Return the segments of a chain that cost least together."""
    units = folded_units(chain, partial(best_cut, prices=prices))
    return cheapest(len(units), lambda i, j: _join(units[i:j], prices))


def cheapest(n: int, piece: Callable[[int, int], tuple[float, T] | None]) -> list[T]:
    """Return the pieces from 0 to n that cost least together; of equals those with shorter ends.

    `piece` gives the cost of the units i to j (excluded) as one piece, and the piece; None where
    they cannot be one. Each unit must be a piece by itself.
    """
    # best[j] = min over i < j of best[i] + cost of the piece from i to j
    best: list[tuple[float, list[T]]] = [(0.0, [])]
    for j in range(1, n + 1):
        lasts = [(best[i], piece(i, j)) for i in range(j - 1, -1, -1)]
        options = [(b[0] + last[0], [*b[1], last[1]]) for b, last in lasts if last is not None]
        best.append(min(options, key=lambda option: option[0]))
    return best[n][1]


def _join(units: Sequence[Segment], prices: Prices) -> tuple[float, Segment] | None:
    """Return the cost of these units as one segment, None if they cannot or need not be one."""
    if len(units) == 1:
        return _alone(units[0], prices)
    parts = [unit.map for unit in units if unit.map is not None]
    layers = sum(unit.layers for unit in units)
    # Slices and paddings alone only move data: a layer in their place costs more.
    if not prices.joins or len(parts) < len(units) or not layers:
        return None
    try:
        composed = in_a_row(parts)
    except Inexact:
        return None
    if _work(composed) > prices.most_work * sum(map(_work, parts)):
        return None
    price, apart = _price(composed, units, prices), _apart(units, prices)
    if any(_price(composed, units, one) > _apart(units, one) for one in prices.each):
        return None
    start, end = units[0].start, units[-1].end
    segment = Segment(start, end, composed, layers, True, cost=price, cost_apart=apart)
    return price / prices.margin, segment


def _apart(units: Sequence[Segment], prices: Prices) -> float:
    return sum(_alone(unit, prices)[0] for unit in units)


def _alone(unit: Segment, prices: Prices) -> tuple[float, Segment]:
    """Return the cheaper form of a unit: one layer, or the sum of its branches."""
    parts = [part for branch in unit.branches for part in branch]
    apart = sum(_alone(part, prices)[0] for part in parts if part.map is not None or part.branches)
    if unit.map is None:
        return apart, unit
    if not unit.branches:
        return prices.of(unit.map, unit.start), unit
    reason = ""
    if prices.joins:
        together = _price(unit.map, [unit, *parts], prices) / prices.margin
        # the addition costs about what scaling and shifting the same tensor does
        apart += prices.of(ConvMap.identity(unit.map.channels_out, unit.map.spatial), unit.end)
        slower = any(_slower_as_one(unit, parts, one) for one in prices.each)
        if together <= apart and not slower:
            price = together * prices.margin
            return together, replace(unit, branches=(), cost=price, cost_apart=apart)
        reason = f"as one layer it would be {prices.dearer}"
    changed = any(part.changed for part in parts)
    return apart, replace(unit, map=None, changed=changed, reason=reason)


def _slower_as_one(unit: Segment, parts: Sequence[Segment], prices: Prices) -> bool:
    """Whether a sum of branches costs more as one layer."""
    assert unit.map is not None  # else there is no such layer
    branches = replace(unit, map=None)
    added = prices.of(ConvMap.identity(unit.map.channels_out, unit.map.spatial), unit.end)
    return _price(unit.map, [unit, *parts], prices) > _alone(branches, prices)[0] + added


def _price(composed: ConvMap, units: Sequence[Segment], prices: Prices) -> float:
    """Return the cost of a composed map, at most that of a unit which does its work and more."""
    # A measurement that says it costs more than such a unit comes from a busy machine.
    known = (
        prices.of(unit.map, unit.start)
        for unit in units
        if unit.map is not None and composed.works_within(unit.map)
    )
    return min([prices.of(composed, units[0].start), *known])


def _work(composed: ConvMap) -> float:
    """Return multiply-accumulates per output position, in proportion to the output's size."""
    return composed.weight.numel() / math.prod(composed.stride)


def _work_at(composed: ConvMap, node: fx.Node) -> float:
    """Return about how many multiply-accumulates a map of a node's value takes, for one sample."""
    if composed.is_identity:
        return 0.0
    if composed.covers(tensor_shape(node)[2:]):
        return float(composed.weight.numel())  # one position is left
    return _work(composed) * positions(node, linear=not composed.spatial)


# ---------------------------------------------------------------------- what layers cost


class LayerCosts:
    """What layers cost in the deployments that decide, in milliseconds.

    In several, a layer's time counts by its share of the network's latency there, as `together`
    has it: the costs are then milliseconds of a call of the network that takes as long in each.

    Once a layer could not be timed, since other work kept the machine busy, `doubt` says so and the
    prices are multiply-accumulates: who has taken others before must choose again.
    """

    def __init__(self, network: Network, where: Sequence[Deployment]) -> None:
        self._network, self._where = network, where
        self._each = [LatencyCosts(network, one.batch, one.runtime) for one in where]

    @cached_property
    def _weights(self) -> list[float]:
        if len(self._where) == 1:
            return [1.0]
        inputs = as_inputs(self._network.example_inputs(2), self._network.inputs.parameters)
        timed = measure_in(self._where, {"": self._network}, inputs, min_seconds=0.3)
        whole = [found[""].median_ms for found in timed]
        return [fmean(whole) / ms for ms in whole]

    def map_ms(self, found: ConvMap, node: fx.Node) -> float:
        """Return the cost of the layers that compute a map of a node's value."""
        costs = (one.map_ms(found, node) for one in self._each)
        return sum(weight * cost for weight, cost in zip(self._weights, costs, strict=True))

    @property
    def doubt(self) -> str:
        """Why a layer could not be timed, in words; "" where all could be."""
        return next((one.doubt for one in self._each if one.doubt), "")

    def prices(self, **how: Any) -> Prices:
        """Return these costs as prices; the rest as `Prices` has it."""
        if self.doubt:
            return Prices(_work_at, in_ms=False, dearer="more work", **how)
        each = tuple(Prices(one.map_ms, **how) for one in self._each)
        return Prices(self.map_ms, each=each if len(each) > 1 else (), **how)

    def save(self) -> None:
        """Write new figures to disk."""
        for one in self._each:
            one.save()


class LatencyCosts:
    """Latency of layers by configuration and input shape, in milliseconds.

    Layers are not timed side by side, and the figures are kept for later runs on this machine, in
    $SHOAL_CACHE or the user's cache: so the fastest round counts, which work beside disturbs least,
    and one that was disturbed all the time is neither kept nor believed: `doubt` tells of it, and
    nothing more is timed.
    """

    def __init__(self, network: Network, batch: int, runtime: str | Runtime = EAGER) -> None:
        self.batch = batch
        self.device = device_of(network)
        self.dtype = dtype_of(network) or torch.float32
        self.runtime = find_runtime(runtime)
        chosen, users = os.environ.get("SHOAL_CACHE"), os.environ.get("XDG_CACHE_HOME")
        folder = Path(chosen) if chosen else Path(users or Path.home() / ".cache") / "shoal"
        self.path = folder / f"latency-{self._machine()}.json"
        self._known: dict[str, float] = self._read()
        self._fresh = False
        self.doubt = ""

    def _machine(self) -> str:
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        given = ((one, getattr(self.runtime, one.name)) for one in fields(self.runtime))
        asked = [f"{one.name}={value}" for one, value in given if value != one.default]
        parts = [
            "calm", platform.machine(), platform.processor(), platform.node(), where,
            self.device.type, str(torch.get_num_threads()), torch.__version__,
            self.runtime.name, self.runtime.version, *asked,
        ]  # fmt: skip
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]

    def _read(self) -> dict[str, float]:
        try:
            return conform(dict[str, Amount], read_sealed(self.path, required=True))
        except DamagedError:
            return {}  # a damaged cache is only a cache: what it held is measured again

    def save(self) -> None:
        """Write new figures to disk; a folder that cannot be written is no error."""
        if self._fresh:
            with contextlib.suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_file(self.path, sealed_text({**self._read(), **self._known}))
                self._fresh = False

    def map_ms(self, found: ConvMap, node: fx.Node) -> float:
        """Return the latency of the layers that compute a map of a node's value."""
        shape = tensor_shape(node)
        place = "before" if found.covers(shape[2:]) else None  # of a flattening
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        layers = as_built(found, node, place).layers(like)
        if place is not None:
            shape = (shape[0], found.weight[0].numel())
        size = (self.batch, *(n if n is not None else self.batch for n in shape[1:]))
        key = f"{[repr(layer) for layer in layers]}|{size}|{self.dtype}"
        if key not in self._known and not self.doubt:
            inputs = torch.randn(size, device=self.device).to(self.dtype)
            self._time(key, nn.Sequential(*layers) if len(layers) != 1 else layers[0], inputs)
        return self._known.get(key, 0.0)  # 0 where `doubt` tells that it does not count

    def _time(self, key: str, model: nn.Module, inputs: torch.Tensor) -> None:
        """Time a layer, and keep its fastest round, or the doubt about it."""
        for _ in range(_ATTEMPTS):
            timing = measure_latency(
                {"": model}, inputs, runtime=self.runtime,
                min_seconds=0.05, max_seconds=5.0, repeats=7, warmup=2, attempts=1,
            )[""]  # fmt: skip
            self.doubt = timing.disturbed  # rounds that differ are no harm: the fastest counts
            if not self.doubt:
                self._known[key] = min(timing.rounds_ms)
                self._fresh = True
                return
