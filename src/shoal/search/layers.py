"""What became of each layer of a network, and where its time goes, before and after a search."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import fx, nn

from shoal.measure import count_macs
from shoal.merge.report import MergeReport
from shoal.modes import device_of, eval_mode
from shoal.network import Network
from shoal.network.flow import is_weighted
from shoal.network.inputs import Inputs, as_call
from shoal.network.runner import Runner, Tap
from shoal.schema import Amount, Count
from shoal.search.record import Record

_MOST_REGIONS = 20
_ROUNDS = 15


@dataclass(frozen=True)
class Layer(Record):
    """A layer with weights, or a rectifier.

    Attributes:
        path: where it is in its network.
        what: it in a few words.
        fate: of the dense network's: "kept", "linearized", "dropped", "collapsed" or "merged"; of
            the result's: "kept", "collapsed" where it was fitted to a stretch, "merged" where it
            was composed of several.
        macs: its multiply-accumulates for one sample; 0 of a rectifier.
    """

    path: str
    what: str
    fate: str
    macs: Count


@dataclass(frozen=True)
class RegionTime(Record):
    """The time that a part of the network takes, in eager PyTorch, its calls timed one by one.

    Attributes:
        name: the path of its module; "" for what the model's own forward pass does.
        dense_ms: of the dense network with its batch norms folded, in milliseconds.
        result_ms: of the result, merged.
    """

    name: str
    dense_ms: Amount
    result_ms: Amount


def layers_before_and_after(
    dense: Network, best: Network, merged: Network, report: MergeReport, inputs: Inputs
) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
    """Return the layers of the dense network and of the result merged, each with its fate."""
    joined = {item.name: item for item in report.merged if item.weighted_before > 1}
    gone = {layer for item in joined.values() for layer in item.layers}
    still = {path for path, _ in _layers(best)}
    linear = {site.name for site in best.sites if site.linearized is not None}
    own = _layers(dense)
    order = [path for path, _ in own]
    fates = dict.fromkeys(order, "kept")
    for path in order:
        if path in linear:
            fates[path] = "linearized"
        elif path in gone and path in still:
            fates[path] = "merged"
        elif path not in still:
            fates[path] = _fate(path, order, best)
    work = count_macs(dense, inputs).by_module
    before = [Layer(path, what, fates[path], work.get(path, 0)) for path, what in own]
    work = count_macs(merged, inputs).by_module
    after = [
        Layer(path, what, "merged" if path in joined else _origin(path), work.get(path, 0))
        for path, what in _layers(merged)
    ]
    return tuple(before), tuple(after)


def _layers(network: Network) -> list[tuple[str, str]]:
    """Return path and words of each layer with weights and each rectifier, in their order."""
    kinds = {site.name: site.kind for site in network.sites if site.linearized is None}
    found: dict[str, str] = {}
    for node in network.graph.nodes:
        if node.op != "call_module":
            continue
        path = str(node.target)
        if path in kinds:
            found[path] = kinds[path]
        elif is_weighted(node, network):
            found[path] = _words(network.get_submodule(path))
    return list(found.items())


def _words(layer: nn.Module) -> str:
    kernel = getattr(layer, "kernel_size", None)
    sizes = [getattr(layer, f"{end}_{kind}", None)
             for kind in ("channels", "features") for end in ("in", "out")]  # fmt: skip
    first, last = [size for size in sizes if size is not None][:2] or (None, None)
    name = "conv" if isinstance(kernel, tuple) else type(layer).__name__.lower()
    shape = f" {'×'.join(map(str, kernel))}" if isinstance(kernel, tuple) else ""
    groups = getattr(layer, "groups", 1)
    grouped = f", {groups} groups" if groups > 1 else ""
    return f"{name}{shape}" + ("" if first is None else f", {first} → {last}") + grouped


def _fate(path: str, order: Sequence[str], best: Network) -> str:
    """Return how a layer that is gone went, by the last operation that covers it."""
    for operation in reversed(best.plan.operations):
        fate = {"drop": "dropped", "collapse": "collapsed"}.get(operation.kind)
        if fate and any(_covers(name, path, order) for name in operation.names):
            return fate
    return "dropped"


def _covers(name: str, path: str, order: Sequence[str]) -> bool:
    """Whether a block or stretch of that name held a layer of the dense network."""
    ends = [end.removesuffix(".collapsed") for end in name.split("..")]
    inside = [[p for p in order if p == end or p.startswith(f"{end}.")] for end in ends]
    if not all(inside):
        return False
    return order.index(inside[0][0]) <= order.index(path) <= order.index(inside[-1][-1])


def _origin(path: str) -> str:
    return "collapsed" if path.rpartition(".")[2].startswith("collapsed") else "kept"


# ---------------------------------------------------------------------- time


def region_times(dense: Network, merged: Network, inputs: Inputs) -> tuple[RegionTime, ...]:
    """Return the time in each part of both networks, from rounds that time both.

    Empty where calls cannot be timed one by one: on other devices than a CPU.
    """
    if device_of(dense).type != "cpu":
        return ()
    networks = {"dense": dense, "merged": merged}
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in networks}
    clocks = {name: _NodeClock(network, inputs) for name, network in networks.items()}
    for _ in range(_ROUNDS):
        for name, clock in clocks.items():
            samples[name].append(clock.seconds())
    paths = list(dict.fromkeys(path for clock in clocks.values() for path in clock.paths))
    both = {name: _medians(found) for name, found in samples.items()}
    region = _region_of(paths)

    def total(name: str, wanted: str) -> float:
        return 1e3 * sum(t for path, t in both[name].items() if region(path) == wanted)

    return tuple(
        RegionTime(r, total("dense", r), total("merged", r))
        for r in dict.fromkeys(map(region, paths))
    )


class _NodeClock:
    """Runs a network node by node and tells how long the nodes of each path took."""

    def __init__(self, network: Network, inputs: Inputs) -> None:
        self._network = network
        args, kwargs = as_call(inputs)
        self._leaves = network.inputs.flatten(args, kwargs)
        self._stamps: list[float] = []
        nodes = [n for n in network.graph.nodes if n.op.startswith("call_")]
        self.paths = [_path_of(node) for node in nodes]
        hear = partial(_stamp, self._stamps)
        self._runner = Runner(network, taps=[Tap(node, (), hear) for node in nodes])

    def seconds(self) -> dict[str, float]:
        self._stamps.clear()
        with eval_mode(self._network), torch.inference_mode():
            before = time.perf_counter()
            self._runner.values(*self._leaves)
        found: dict[str, float] = {}
        for path, stamp in zip(self.paths, self._stamps, strict=True):
            found[path] = found.get(path, 0.0) + stamp - before
            before = stamp
        return found


def _stamp(stamps: list[float]) -> None:
    stamps.append(time.perf_counter())


def _path_of(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else str(node.meta.get("path") or "")


def _medians(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {path: median(one[path] for one in found) for path in found[0]}


def _region_of(paths: Sequence[str]) -> Any:
    """Return what gives the region of a path: as many leading names as keep the regions few."""

    def at(depth: int) -> Any:
        return lambda path: ".".join(path.split(".")[:depth])

    best = at(1)
    for depth in (2, 3, 4):
        if len({at(depth)(path) for path in paths}) > _MOST_REGIONS:
            break
        best = at(depth)
    return best
