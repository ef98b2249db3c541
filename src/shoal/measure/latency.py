"""What networks cost on this machine: latency, timed in the same rounds, and all other figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from operator import truediv
from typing import Any, ClassVar, Unpack

import torch
from torch import fx, nn

from shoal.display import Shown, three_digits
from shoal.errors import ConfigError, ShoalError
from shoal.measure.machine import watch
from shoal.measure.ratio import Ratio, block_times, quartiles, typical, unsteady
from shoal.measure.rectifiers import rectifier_evaluations
from shoal.measure.rounds import WARMUP, Rounds, Timing, device_timer, time_rounds
from shoal.measure.size import count_macs, count_params, depth
from shoal.network import Network
from shoal.network.inputs import Inputs, batch_size, calling
from shoal.runtimes.eager import EagerRunner
from shoal.runtimes.runtime import EAGER, Runner, Runtime, find_runtime, open_runtime


@dataclass(frozen=True)
class Latency:
    """How long one call on one batch takes, in milliseconds: median and quartiles of the rounds.

    The median is that of a block of rounds, and of the blocks the geometric mean: so the quotient
    of two networks' medians from the same rounds is the ratio that `latency_ratio` gives.
    """

    median_ms: float
    q1_ms: float
    q3_ms: float
    samples: int  # the number of rounds
    inner: int  # calls in a row that make one round's sample
    batch_size: int  # samples (images) per call
    device: str  # where it ran ("cpu", "cuda:0")
    threads: int  # on the CPU
    rounds_ms: tuple[float, ...] = field(repr=False)  # the time of each round
    # The typical time of each block of rounds; without it, as the rounds have it
    blocks_ms: tuple[float, ...] = field(default=(), repr=False)
    disturbed: str = ""  # what disturbed the machine meanwhile, in words; "" for nothing

    def __post_init__(self) -> None:
        """Put the rounds into blocks, if that was not done."""
        if not self.blocks_ms:
            object.__setattr__(self, "blocks_ms", block_times([self.rounds_ms])[0])

    @classmethod
    def of(cls, rounds: Rounds, name: str, runner: Runner, batch_size: int) -> Latency:
        """Return the latency of one of the calls that were timed."""
        times = tuple(1e3 * seconds for seconds in rounds.seconds[name])
        blocks = tuple(1e3 * seconds for seconds in rounds.blocks[name])
        median, (q1, _, q3) = typical(blocks), quartiles(times)
        return cls(
            median, min(q1, median), max(q3, median), len(times), rounds.inner[name], batch_size,
            runner.device, runner.threads, times, blocks, rounds.doubt,
        )  # fmt: skip

    @property
    def doubt(self) -> str:
        """Why it is not to be trusted, in words; "" where it is."""
        return self.disturbed or unsteady(self.blocks_ms)

    @property
    def trusted(self) -> bool:
        """Whether there is no doubt about how it was measured."""
        return not self.doubt

    @property
    def images_per_second(self) -> float:
        """Throughput at the median."""
        return 1e3 * self.batch_size / self.median_ms

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, without the single rounds, as JSON values."""
        values = {**asdict(self), "images_per_second": self.images_per_second}
        for name in ("rounds_ms", "blocks_ms", "disturbed"):
            del values[name]
        return {**values, "trusted": self.trusted, "doubt": self.doubt}

    def __str__(self) -> str:
        median, low, high = map(three_digits, (self.median_ms, self.q1_ms, self.q3_ms))
        text = f"{median} ms ({low} to {high})"
        return text if self.trusted else f"{text}, not to be trusted"


def latency_ratio(slower: Latency, faster: Latency) -> Ratio:
    """Return how many times longer `slower` takes than `faster`, by pairs of rounds.

    Both must come from one call of `measure_latency`; raises `ConfigError` if they cannot. A drift
    that is alike for both, which casts a doubt on milliseconds, casts none on their ratio.
    """
    if len(slower.rounds_ms) != len(faster.rounds_ms):
        raise ConfigError(
            f"a ratio of pairs needs equally many rounds, not {len(slower.rounds_ms)} and "
            f"{len(faster.rounds_ms)}: measure both in the same call"
        )
    blocks = list(map(truediv, slower.blocks_ms, faster.blocks_ms))
    pairs = list(map(truediv, slower.rounds_ms, faster.rounds_ms))
    return Ratio.of_blocks(blocks, pairs, slower.disturbed)


def measure_latency(
    models: Mapping[str, Callable[..., Any]],
    inputs: Inputs,
    *,
    runtime: str | Runtime = EAGER,
    threads: int | None = None,
    channels_last: bool = True,
    device: torch.device | str | None = None,
    clock: Callable[[], float] | None = None,
    **timing: Unpack[Timing],
) -> dict[str, Latency]:
    """Measure the latency of several models in interleaved rounds.

    Each round calls every model, in an order that changes from round to round, so a machine that
    gets slower or faster does so for all of them; `latency_ratio` then compares round by round.
    What other programs take from the machine meanwhile is looked at; a measurement that was
    disturbed, or whose rounds are not steady, is repeated, and if it stays so it says so (`doubt`).
    Modules run in eval and inference mode and are left exactly as they were. Only the runtime is
    timed: inputs are converted beforehand. A call on a GPU is timed as one of several issued back
    to back.

    The `models` are modules or other callables, which are made to run in the runtime, or `Runner`s,
    which run where they are. The rest is as `benchmark` has it; the device is by default that of
    the first module with parameters.

    Raises:
        NameNotFoundError: there is no such runtime.
        ConfigError: a model cannot be called with the inputs, or a limit makes no sense.
        ShoalError: the runtime is not installed, or a model cannot be translated for it.
    """
    size = batch_size(inputs)
    where = find_runtime(runtime, threads=threads, channels_last=channels_last, device=device)
    runners = make_all(where, models, inputs)
    if len({r.threads for r in runners.values() if isinstance(r, EagerRunner)}) > 1:
        raise ConfigError(
            "PyTorch has one number of threads at a time: measure networks with different numbers "
            "of threads in calls of their own"
        )
    queue = next((runner.queue for runner in runners.values() if runner.queue is not None), None)
    with ExitStack() as stack:
        calls = {name: stack.enter_context(r.ready(inputs)) for name, r in runners.items()}
        for name, call in calls.items():
            with calling(f"the model '{name}'", keep=ShoalError):
                call()
        timing["warmup"] = max(0, timing.get("warmup", WARMUP) - 1)  # the trial was the first
        # A GPU is fed by one thread; a clock that is handed in says nothing of this machine.
        busy = max((r.threads for r in runners.values()), default=1) if queue is None else 1
        watched = watch(busy) if clock is None else None
        rounds = time_rounds(calls, timer=device_timer(queue, clock), watch=watched, **timing)
    return {name: Latency.of(rounds, name, r, size) for name, r in runners.items()}


def make_all(
    where: Runtime, models: Mapping[str, Callable[..., Any]], inputs: Inputs
) -> dict[str, Runner]:
    """Return models made to run in a runtime, all on one device; a `Runner` stays as it is."""
    where = replace(where, device=where.place(models.values(), inputs))
    return {
        name: model if isinstance(model, Runner) else where.make(model, inputs)
        for name, model in models.items()
    }


# ---------------------------------------------------------------------- side by side


@dataclass(frozen=True)
class SideBySide:
    """Latencies of several networks from the same rounds."""

    runtime: str  # its name
    baseline: str  # the name of the network that the others are compared with
    latencies: Mapping[str, Latency]  # by name; empty where the runtime cannot run the baseline
    missing: Mapping[str, str]  # by name, why there is no latency of a network
    batch: int  # samples per call

    def ratio(self, name: str) -> Ratio:
        """Return the baseline's latency over that of `name`, by pairs: 2 is twice as fast."""
        return latency_ratio(self.latencies[self.baseline], self.latencies[name])

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "runtime": self.runtime,
            "batch": self.batch,
            "baseline": self.baseline,
            "latency": {name: found.to_dict() for name, found in self.latencies.items()},
            "ratio": {name: self.ratio(name).to_dict() for name in self.latencies},
            "missing": dict(self.missing),
        }


class InRuntime:
    """Networks made to run in a runtime once, to be timed at several batch sizes.

    They are made with the `example`'s inputs, and then compared with the network; a `Runner` is
    taken as it is. `missing` says by name, in one line, why a network is left out. Raises
    `NameNotFoundError` without such a runtime.
    """

    def __init__(
        self, runtime: str | Runtime, models: Mapping[str, nn.Module | Runner], example: Inputs,
        *, threads: int | None = None,
    ) -> None:  # fmt: skip
        self._where = open_runtime(runtime, threads=threads)
        self._example = example
        self.name = self._where.name
        self.missing: dict[str, str] = {}
        self._runners: dict[str, Runner] = {}
        self.add(models)

    def add(self, models: Mapping[str, nn.Module | Runner]) -> None:
        """Make more networks run beside those that are there."""
        lacking = self._where.lacking()
        for name, model in models.items():
            if lacking is not None:
                self.missing[name] = lacking
                continue
            try:
                self._runners[name] = (
                    model
                    if isinstance(model, Runner)
                    else self._where.make(model, self._example, check=True)
                )
            except ShoalError as error:
                self.missing[name] = str(error)

    def _failing(self, inputs: Inputs) -> dict[str, str]:
        """Return by name why networks cannot be called with the inputs."""
        found: dict[str, str] = {}
        for name, runner in self._runners.items():
            try:
                with runner.ready(inputs) as call, calling(f"the model '{name}'", keep=ShoalError):
                    call()
            except ShoalError as error:
                found[name] = str(error)
        return found

    def measure(self, inputs: Inputs, baseline: str, **timing: Unpack[Timing]) -> SideBySide:
        """Measure those that can be run, if the baseline is among them; see `Timing`."""
        found: dict[str, Latency] = {}
        missing, able = dict(self.missing), dict(self._runners)
        while baseline in able and not found:
            try:
                found = measure_latency(able, inputs, **timing)
            except ShoalError as error:
                # One that cannot be called leaves out itself alone
                failing = self._failing(inputs) or dict.fromkeys(able, str(error))
                missing |= failing
                able = {name: one for name, one in able.items() if name not in failing}
        if baseline not in able:
            why = f"not timed, since the baseline cannot be ({missing.get(baseline, 'unknown')})"
            missing |= dict.fromkeys(able, why)
        return SideBySide(self.name, baseline, found, missing, batch_size(inputs))


# ---------------------------------------------------------------------- all figures


@dataclass(frozen=True, repr=False)
class Benchmark(Shown):
    """What a network costs on this machine; ratios are the baseline's figures over its own."""

    latency: Latency  # of one batch
    macs: int  # multiply-accumulates of one sample
    params: int  # number of parameter elements
    depth: int | None  # layers with weights on the longest path; None for a module without a graph
    relus: int | None  # rectifier evaluations of one sample; None for what was not captured
    batch_size: int  # samples per call
    runtime: str = EAGER  # the name of where latency was measured
    uncounted: tuple[str, ...] = ()  # operations that `macs` leaves out: they are not understood
    baseline: Benchmark | None = None  # its figures, from the same rounds
    speedup: Ratio | None = None  # of latency, by pairs of rounds: 2 is twice as fast
    macs_ratio: float | None = None  # None if the network has none
    params_ratio: float | None = None

    shown_by: ClassVar[str] = "shoal.report.notebook:benchmark_html"

    def __repr__(self) -> str:
        """Return the figures in one line."""
        return f"<benchmark: {self}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values, the baseline's nested."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        nested = {n: v.to_dict() for n, v in values.items() if hasattr(v, "to_dict")}
        return {**values, **nested, "uncounted": list(self.uncounted)}

    def __str__(self) -> str:
        parts = [
            f"latency at batch {self.batch_size} on {self.latency.device}: {self.latency}",
            f"{self.macs:,} MACs per sample{' (incomplete)' if self.uncounted else ''}",
            f"{self.params:,} parameters",
        ]
        if self.depth is not None:
            parts.append(f"depth {self.depth} layers")
        if self.relus is not None:
            parts.append(f"{self.relus:,} rectifier evaluations per sample")
        if self.speedup is not None:
            parts.append(f"latency, baseline / this: {self.speedup}")
        return "; ".join(parts)


# Long because each of its arguments is explained; the body is short.
def benchmark(
    net: nn.Module,
    inputs: Inputs,
    baseline: nn.Module | None = None,
    *,
    runtime: str | Runtime = EAGER,
    threads: int | None = None,
    channels_last: bool = True,
    device: torch.device | str | None = None,
    clock: Callable[[], float] | None = None,
    **timing: Unpack[Timing],
) -> Benchmark:
    """Measure `net`, and compare it with `baseline` in interleaved rounds.

    Both are measured in eval and inference mode and left exactly as they were.

    Args:
        net: the network, or any module (then its depth is not known).
        inputs: one batch: a tensor, a tuple of them, or a dict of keyword inputs.
        baseline: what to compare with, called with the same inputs.
        runtime: where latency is measured: "eager", "compile", "onnxruntime", "openvino",
            "tensorrt", or a `Runtime` of your own.
        threads: threads on the CPU; None leaves them.
        channels_last: run 4-D inputs in channels_last memory format.
        device: where to measure; by default where the network is.
        clock: returns seconds; by default CUDA's events or the machine's best clock.
        **timing: how long and how often; see `measure.Timing`.

    Raises:
        ConfigError: a model is not a module or cannot be called with the inputs.
        ShoalError: the runtime is not installed, or a model cannot be translated for it.

    Example:
        >>> import shoal, torch
        >>> images = torch.randn(8, 1, 8, 8)
        >>> dense = shoal.capture(shoal.models.digits_resnet(), images)
        >>> shallow = dense.copy()
        >>> operations = shoal.drop_(shallow, ["layer1.1", "layer2.1"])
        >>> report = shoal.benchmark(shallow, images, baseline=dense, min_seconds=0, repeats=3)
        >>> report.depth, report.baseline.depth, round(report.macs_ratio, 2)
        (10, 14, 1.52)
    """
    models = {"net": net} if baseline is None else {"net": net, "baseline": baseline}
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise ConfigError(f"the {name} must be an nn.Module, not {type(model).__name__}")
    latencies = measure_latency(
        models, inputs, runtime=runtime, threads=threads, channels_last=channels_last,
        device=device, clock=clock, **timing,
    )  # fmt: skip
    where = open_runtime(runtime).name
    figures = {n: _figures(model, inputs, latencies[n], where) for n, model in models.items()}
    own = figures["net"]
    if baseline is None:
        return own
    base = figures["baseline"]
    return replace(
        own,
        baseline=base,
        speedup=latency_ratio(latencies["baseline"], latencies["net"]),
        macs_ratio=base.macs / own.macs if own.macs else None,
        params_ratio=base.params / own.params if own.params else None,
    )


def _figures(model: nn.Module, inputs: Inputs, latency: Latency, runtime: str) -> Benchmark:
    macs = count_macs(model, inputs)
    has_graph = isinstance(getattr(model, "graph", None), fx.Graph)
    relus = rectifier_evaluations(model, inputs) if isinstance(model, Network) else None
    return Benchmark(
        latency, macs.total, count_params(model), depth(model) if has_graph else None,
        None if relus is None else sum(relus.values()), batch_size(inputs), runtime, macs.uncounted,
    )  # fmt: skip
