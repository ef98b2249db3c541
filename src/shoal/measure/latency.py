"""The latency of networks on this machine, timed in the same rounds and compared by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Unpack

import torch
from torch import nn

from shoal.errors import ConfigError, OptionError, ShoalError
from shoal.measure.rounds import WARMUP, Ratio, Timing, device_timer, quartiles, time_rounds
from shoal.network.inputs import Inputs, batch_size, first_line
from shoal.runtimes.runtime import EAGER, Runner, Runtime, find_runtime, open_runtime


@dataclass(frozen=True)
class Latency:
    """How long one call on one batch takes.

    Attributes:
        median_ms: the median over the rounds, in milliseconds per batch.
        q1_ms: the lower quartile.
        q3_ms: the upper quartile.
        samples: the number of rounds.
        inner: calls in a row that make one round's sample.
        batch_size: samples (images) per call.
        device: where it ran ("cpu", "cuda:0").
        threads: threads that were used on the CPU.
        rounds_ms: the time of each round.
    """

    median_ms: float
    q1_ms: float
    q3_ms: float
    samples: int
    inner: int
    batch_size: int
    device: str
    threads: int
    rounds_ms: tuple[float, ...] = field(repr=False)

    @property
    def images_per_second(self) -> float:
        """Throughput at the median."""
        return 1e3 * self.batch_size / self.median_ms

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, without the single rounds, as JSON values."""
        values = {**asdict(self), "images_per_second": self.images_per_second}
        del values["rounds_ms"]
        return values

    def __str__(self) -> str:
        return f"{self.median_ms:.3g} ms ({self.q1_ms:.3g} to {self.q3_ms:.3g})"


def latency_ratio(slower: Latency, faster: Latency) -> Ratio:
    """Return how many times longer `slower` takes than `faster`, by pairs of rounds.

    Both must come from one call of `measure_latency`; raises `ConfigError` if they cannot.
    """
    return Ratio.of(slower.rounds_ms, faster.rounds_ms)


# Long because each of its arguments is explained; the body is short.
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
    Modules run in eval and inference mode and are left exactly as they were. Only the runtime is
    timed: inputs are converted beforehand. A call on a GPU is timed as one of several issued back
    to back.

    Args:
        models: by name: modules or other callables, which are made to run in the runtime, or
            `Runner`s, which run where they are.
        inputs: a tensor, a tuple of them, or a dict of keyword inputs, batch first.
        runtime: where to run them: "eager", "onnxruntime", or a `Runtime` of your own.
        threads: threads on the CPU during the measurement; None leaves them.
        channels_last: run 4-D inputs, and the modules for them, in channels_last memory format.
        device: where to measure; by default where the first module with parameters is.
        clock: returns seconds; by default CUDA's events or the machine's best clock.
        **timing: `warmup`, `repeats`, `min_seconds` and `max_seconds`; see `Timing`.

    Raises:
        NameNotFoundError: there is no such runtime.
        ConfigError: a model cannot be called with the inputs, or a limit makes no sense.
        ShoalError: the runtime is not installed, or a model cannot be translated for it.
    """
    if threads is not None and threads < 1:
        raise OptionError("threads", threads, "at least 1")
    size = batch_size(inputs)
    where = find_runtime(runtime, threads=threads, channels_last=channels_last, device=device)
    where = replace(where, device=where.place(models.values(), inputs))  # one for all
    runners = {
        name: model if isinstance(model, Runner) else where.make(model, inputs)
        for name, model in models.items()
    }
    queue = next((runner.queue for runner in runners.values() if runner.queue is not None), None)
    with ExitStack() as stack:
        calls = {name: stack.enter_context(r.ready(inputs)) for name, r in runners.items()}
        for name, call in calls.items():
            try:
                call()
            except ShoalError:
                raise
            except Exception as error:
                raise ConfigError(
                    f"the model '{name}' cannot be called with these inputs ({first_line(error)}): "
                    "pass inputs of the shapes and types that its forward takes"
                ) from error
        timing["warmup"] = max(0, timing.get("warmup", WARMUP) - 1)  # the trial was the first
        rounds = time_rounds(calls, timer=device_timer(queue, clock), **timing)
    found = {}
    for name, runner in runners.items():
        times = tuple(1e3 * s for s in rounds.seconds[name])
        q1, median, q3 = quartiles(times)
        found[name] = Latency(
            median, q1, q3, len(times), rounds.inner[name], size,
            runner.device, runner.threads, times,
        )  # fmt: skip
    return found


def latency_in(
    runtime: str | Runtime, models: Mapping[str, Callable[..., Any]], inputs: Inputs, **options: Any
) -> dict[str, Latency]:
    """Measure models in a runtime; `options` are those of `measure_latency`."""
    return measure_latency(models, inputs, runtime=runtime, **options)


# ---------------------------------------------------------------------- side by side


@dataclass(frozen=True)
class SideBySide:
    """Latencies of several networks from the same rounds.

    Attributes:
        runtime: its name.
        baseline: the name of the network that the others are compared with.
        latencies: by name; empty where the runtime cannot run the baseline.
        missing: by name, why there is no latency of a network.
    """

    runtime: str
    baseline: str
    latencies: Mapping[str, Latency]
    missing: Mapping[str, str]

    def ratio(self, name: str) -> Ratio:
        """Return the baseline's latency over that of `name`, by pairs: 2 is twice as fast."""
        return latency_ratio(self.latencies[self.baseline], self.latencies[name])

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "runtime": self.runtime,
            "baseline": self.baseline,
            "latency": {name: found.to_dict() for name, found in self.latencies.items()},
            "ratio": {name: self.ratio(name).to_dict() for name in self.latencies},
            "missing": dict(self.missing),
        }


class InRuntime:
    """Networks made to run in a runtime once, to be timed at several batch sizes.

    Args:
        runtime: "eager", "onnxruntime", or a `Runtime` of your own.
        models: by name.
        example: inputs to make them with, and to compare what was made with the network.
        threads: threads on the CPU; None takes as many as PyTorch uses here.

    Attributes:
        missing: by name, one line on why a network is left out.

    Raises:
        NameNotFoundError: there is no such runtime.
    """

    def __init__(
        self,
        runtime: str | Runtime,
        models: Mapping[str, nn.Module],
        example: Inputs,
        *,
        threads: int | None = None,
    ) -> None:
        where = open_runtime(runtime, threads=threads)
        lacking = where.lacking()
        self.name = where.name
        self.missing: dict[str, str] = {} if lacking is None else dict.fromkeys(models, lacking)
        self._runners: dict[str, Runner] = {}
        for name, model in models.items() if lacking is None else ():
            try:
                self._runners[name] = where.make(model, example, check=True)
            except ShoalError as error:
                self.missing[name] = str(error)

    def measure(self, inputs: Inputs, baseline: str, **timing: Unpack[Timing]) -> SideBySide:
        """Measure those that can be run, if the baseline is among them; see `Timing`."""
        found: dict[str, Latency] = {}
        missing = dict(self.missing)
        if baseline in self._runners:
            try:
                found = measure_latency(self._runners, inputs, **timing)
            except ShoalError as error:
                missing |= dict.fromkeys(self._runners, str(error))
        else:
            why = f"not timed, since the baseline cannot be ({missing.get(baseline, 'unknown')})"
            missing |= dict.fromkeys(self._runners, why)
        return SideBySide(self.name, baseline, found, missing)
