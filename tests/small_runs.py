"""A small task that a whole search finishes in a second or two, for the tests of runs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from shoal import compress
from shoal.data import DataSet, load_data
from shoal.measure import (
    Latency,
    Ratio,
    SideBySide,
    count_macs,
    count_params,
    depth,
    rectifier_evaluations,
)
from shoal.merge.merge import merge_
from shoal.network import Network, capture
from shoal.options import Recipe
from shoal.sealed import FILES, read_sealed
from shoal.search.ending import Ending
from shoal.search.gauge import Data, Figures, Gauge
from shoal.search.lab import Lab
from shoal.search.moves import Move
from shoal.search.options import MachineOptions, SearchOptions
from shoal.search.records import Int8, LatencyReport, Result
from shoal.search.rewind import Rewind
from shoal.search.setup import Listener, Setup
from shoal.tasks import Task, find_task, with_own
from shoal.training import fit

TIMED = (
    "latency",
    "latency_ms",
    "latency_ratio",
    "latency_ratio_low",
    "latency_ratio_high",
    "seconds",
    "epoch_seconds",
    "date",  # of the machine's facts
    # Rounding errors of a forward pass: they hang on where its buffers lie in memory.
    "max_rel_error",
    "max_rel_error_float64",
)


class Small(nn.Module):
    """Four rectifier calls, one residual block, one module that is called twice."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.LeakyReLU(0.01)
        self.hidden = nn.Linear(8 * 16, 24)
        self.last = nn.ReLU()
        self.fc = nn.Linear(24, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.conv3(self.act(self.conv2(x))) + x)
        return self.fc(self.last(self.hidden(x.flatten(1))))


SITES = ["relu", "act", "relu_1", "last"]


def build(num_classes: int = 10, in_channels: int = 1, seed: int = 0) -> nn.Module:
    """Return an untrained `Small`, always the same: the factory of `small_runs.py:build`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Small(num_classes, in_channels)


@functools.cache
def digits(batch_size: int = 50) -> DataSet:
    """Return a part of the digits: 250 training and 150 validation images."""
    return load_data(
        "digits", train_samples=250, val_fraction=0.25, val_samples=150, batch_size=batch_size
    )


@functools.cache
def _trained() -> nn.Module:
    net = build()
    fit(net, digits().train, epochs=8, recipe={"lr": 0.1, "precision": "fp32"})
    return net.eval()


def trained() -> nn.Module:
    """Return a `Small` that gets about nine digits in ten right."""
    return copy.deepcopy(_trained())


@functools.cache
def captured() -> Network:
    """Return the capture of the trained `Small`; a search copies it, which is cheap."""
    return capture(trained(), digits().example_inputs(4)).copy()


DEFAULTS: Mapping[str, Any] = {
    "epochs": 1,
    "max_drop": 100.0,
    "recipe": {"lr": 0.02, "precision": "fp32"},
}


def run(out: Path | None = None, model: nn.Module | None = None, **options: Any) -> Result:
    """Compress the trained `Small` (or `model`) on the small digits."""
    data = digits()
    given = {"method": "easier", **DEFAULTS, "test": data.test, **options}
    loaders = given.pop("train", data.train), given.pop("val", data.val)
    given.setdefault("gauge", FakeGauge(loaders[1]))
    return compress(captured() if model is None else model, *loaders, out=out, **given)


def without_times(value: Any) -> Any:
    """Return JSON values without what depends on the clock."""
    if isinstance(value, Mapping):
        return {k: without_times(v) for k, v in value.items() if k not in TIMED}
    return [without_times(v) for v in value] if isinstance(value, list | tuple) else value


def result_of(folder: Path) -> dict[str, Any]:
    """Return a run's `result.json` without checksums and what depends on the clock."""
    held = read_sealed(folder / "result.json")
    return without_times({name: value for name, value in held.items() if name != FILES})


def facts(result: Result) -> dict[str, Any]:
    """Return a result as `result.json` spells it, without what depends on the clock."""
    return without_times(result.to_dict())


def removals(result: Result) -> list[tuple[str, ...]]:
    """Return what went at each step, the dense network's nothing left out."""
    return [step.names for step in result.steps[1:]]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two modules hold the very same tensors by name."""
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(
        x.dtype == y.dtype and torch.equal(x, y)
        for x, y in zip(a.values(), b.values(), strict=True)
    )


_counted: dict[Hashable, tuple[int, int]] = {}


def _work(network: Network) -> tuple[int, int]:
    """Count MACs and rectifier evaluations, once for all networks that have the same layers."""
    shapes = tuple((name, value.shape) for name, value in network.state_dict().items())
    key = (str(network.graph), repr(network), repr(network.inputs), shapes)
    if key not in _counted:
        args, kwargs = network.example_inputs(1)
        relus = sum(rectifier_evaluations(network).values())
        _counted[key] = count_macs(network, kwargs or args).total, relus
    return _counted[key]


class FakeGauge(Gauge):
    """Measures quality and work truly and takes every latency for 1 ms: timing is most of a run.

    Args:
        val: the validation data.
        quality: takes the place of the accuracy: gives a network's quality.
        saved: takes the place of what each move saves: 1 ms of 40.
        speedup: how much faster than dense every network is.
        task: what the networks are for.
    """

    def __init__(
        self,
        val: Iterable[Any],
        *,
        quality: Callable[[Network], float] | None = None,
        saved: Callable[[Network, Sequence[Move]], tuple[float, Mapping[str, float]]] | None = None,
        speedup: float = 1.0,
        task: str | Task = "classify",
    ) -> None:
        judge = None if quality is None else lambda network, data: quality(network)
        super().__init__(Data((), val), task=with_own(find_task(task), evaluate=judge))
        self.saved = saved
        self.speedup = speedup

    def measure(self, network: Network) -> Figures:
        """Count, and time nothing."""
        macs, relus = _work(network)
        return Figures(macs, count_params(network), depth(network), 1.0, relus)

    def ratio(self, dense: Network, network: Network) -> Ratio:
        """Return the same for every network."""
        return Ratio.of([self.speedup], [1.0])

    def saved_ms(
        self, network: Network, moves: Sequence[Move], how: str
    ) -> tuple[float, Mapping[str, float], str]:
        """Return what the table says."""
        if self.saved is not None:
            return (*self.saved(network, moves), "")
        return 40.0, {move.title: 1.0 for move in moves}, ""

    def paddings(self, network: Network) -> list[tuple[str, str]]:
        """Move none."""
        return []

    def ending(
        self,
        dense: Network,
        best: Network,
        stage: Callable[[str], object],
        int8: Path | None = None,
    ) -> Ending:
        """Merge whatever can be merged."""
        network = best.copy()
        report = merge_(network, policy="always")
        latency = Latency(1.0, 1.0, 1.0, 1, 1, 1, "cpu", 1, (1.0,))
        names = ("dense", "dense_folded", "result", "result_merged")
        if int8 is not None:
            names += ("dense_int8", "result_int8")
            (int8 / "eager.int8").write_bytes(b"weights")
        eager = SideBySide("eager", "dense_folded", dict.fromkeys(names, latency), {}, 1)
        return Ending(
            network,
            report,
            LatencyReport(
                batch=1,
                runtime="eager",
                dense_ms=1.0,
                dense_folded_ms=1.0,
                result_ms=1.0,
                result_merged_ms=1.0,
                speedup=Ratio.of([1.0], [1.0]).to_dict(),
                runtimes=(eager.to_dict(),),
                merge_max_rel_error=report.max_rel_error,
                merged_depth=report.depth_after,
                merged_macs=report.macs_after,
                merged_params=count_params(network),
            ),
            None if int8 is None else (INT8,),
            () if int8 is None else ("no int8 in OpenVINO: no",),
        )


INT8 = Int8(
    runtime="eager",
    file="eager.int8",
    bytes=7,
    samples=300,
    agreement=99.0,
    top1_val=89.5,
    top1_test=None,
)


def relabelled(batches: Iterable[Any], shift: int) -> list[Any]:
    """Return the batches with every label moved on by `shift`: all wrong for a trained network."""
    return [(x, (y + shift) % 10) for x, y in batches]


_captures: dict[Hashable, Network] = {}


def _captured_once(model: nn.Module, inputs: Any, **options: Any) -> Network:
    """Capture a model, or take the capture of one that is built alike, with this one's weights."""
    tensors = model.state_dict(keep_vars=True).items()
    state = [(name, x.shape, x.dtype, x.requires_grad) for name, x in tensors]
    shapes = tree_map(lambda x: (x.shape, x.dtype) if isinstance(x, Tensor) else x, inputs)
    kinds = tuple((type(module), module.training) for module in model.modules())
    key = (kinds, repr((model, state, shapes, options)))
    if key not in _captures:
        _captures[key] = capture(model, inputs, **options).copy()
    network = _captures[key].copy()
    network.load_state_dict(model.state_dict())
    return network


def untimed_commands(patch: pytest.MonkeyPatch) -> None:
    """Let the command line, which takes no gauge, time nothing, nor capture one model twice."""
    patch.setattr("shoal.search.compress.Gauge", lambda data, *_: FakeGauge(data.val))
    patch.setattr("shoal.search.compress.capture", _captured_once)


def lab(network: Network, train: Iterable[Any], val: Iterable[Any], **options: Any) -> Lab:
    """Return a lab on a copy of a network, as a method gets it, without a run's folder."""
    fit = options.pop("fit", None)
    wanted = SearchOptions(**options)
    setup = Setup(
        base=network,
        data=Data(train, val),
        options=wanted,
        machine=MachineOptions(),
        recipe=Recipe(lr=0.01, precision="fp32"),
        gauge=FakeGauge(val),
        listener=Listener(),
        rewind=Rewind(wanted, network, None, own_training=False),
        fit=fit,
    )
    return Lab(setup, network.copy(), network, [])
