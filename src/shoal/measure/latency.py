"""The latency of networks on this machine, measured side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from shoal.errors import ConfigError
from shoal.measure.rounds import clock_timer, device_timer, time_rounds
from shoal.measure.stats import Ratio, quartiles
from shoal.network.borrow import borrowed
from shoal.network.inputs import (
    Inputs,
    as_call,
    batch_size,
    first_line,
    home_device,
    map_tensors,
    resolve_device,
    tensors_of,
)

__all__ = ["Latency", "latency_ratio", "measure_latency"]


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
        threads: threads that PyTorch used on the CPU.
        rounds_ms: each round's time, in the order of the rounds.
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
        """Return the figures, without the single rounds, as plain JSON-ready values."""
        return {
            "median_ms": self.median_ms,
            "q1_ms": self.q1_ms,
            "q3_ms": self.q3_ms,
            "samples": self.samples,
            "inner": self.inner,
            "batch_size": self.batch_size,
            "device": self.device,
            "threads": self.threads,
            "images_per_second": self.images_per_second,
        }

    def __str__(self) -> str:
        return f"{self.median_ms:.3g} ms ({self.q1_ms:.3g} to {self.q3_ms:.3g})"


def latency_ratio(slower: Latency, faster: Latency) -> Ratio:
    """Return how many times longer `slower` takes than `faster`, by pairs of rounds.

    Both must come from one call of `measure_latency`, which makes their rounds pairs.

    Raises:
        ConfigError: they have different numbers of rounds, so they are no pairs.
    """
    return Ratio.of(slower.rounds_ms, faster.rounds_ms)


def measure_latency(
    models: Mapping[str, Callable[..., Any]],
    inputs: Inputs,
    *,
    warmup: int = 3,
    repeats: int = 20,
    min_seconds: float = 0.5,
    max_seconds: float = 60.0,
    threads: int | None = None,
    channels_last: bool = True,
    device: torch.device | str | None = None,
    clock: Callable[[], float] | None = None,
) -> dict[str, Latency]:
    """Measure the latency of several models in interleaved rounds.

    Each round calls every model, in an order that changes from round to round, so a machine that
    gets slower or faster does so for all of them; `latency_ratio` then compares round by round.
    Modules run in eval and inference mode and are left exactly as they were. A call on a GPU is
    timed as one of several issued back to back.

    Args:
        models: modules or other callables by name, called as they are with the inputs.
        inputs: a tensor, a tuple of them, or a dict of keyword inputs, batch first.
        warmup: untimed calls of each model.
        repeats: number of rounds.
        min_seconds: rounds go on until they took so long together, in seconds.
        max_seconds: no round is started after so many seconds (three are always done).
        threads: threads for PyTorch on the CPU during the measurement; None leaves them.
        channels_last: run 4-D inputs, and the modules for them, in channels_last memory format.
        device: where to measure; by default where the first module with parameters is.
        clock: returns seconds; by default CUDA's events or the machine's best clock.

    Raises:
        ConfigError: a model cannot be called with the inputs, or a limit makes no sense.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be at least 1, not {threads}")
    size = batch_size(inputs)
    place = _place(models, inputs, device)
    channels_last = channels_last and any(t.dim() == 4 for t in tensors_of(inputs))
    timer = device_timer(place) if clock is None else clock_timer(clock, _synchronize(place))
    with ExitStack() as stack, _thread_count(threads) as used:
        calls = {}
        for name, model in models.items():
            lent = stack.enter_context(borrowed(model, device=place, channels_last=channels_last))
            calls[name] = _bound(lent, _prepared(inputs, place, channels_last))
        stack.enter_context(torch.inference_mode())
        for name, call in calls.items():
            _try(name, call)
        rounds = time_rounds(
            calls,
            warmup=max(0, warmup - 1),  # the trial above was the first
            repeats=repeats,
            min_seconds=min_seconds,
            max_seconds=max_seconds,
            timer=timer,
        )
    return {
        name: _latency(rounds.seconds[name], rounds.inner[name], size, place, used)
        for name in models
    }


def _latency(
    seconds: tuple[float, ...], inner: int, size: int, place: torch.device, threads: int
) -> Latency:
    times = tuple(1e3 * s for s in seconds)
    q1, median, q3 = quartiles(times)
    return Latency(median, q1, q3, len(times), inner, size, str(place), threads, times)


def _place(
    models: Mapping[str, Any], inputs: Inputs, device: torch.device | str | None
) -> torch.device:
    if device is not None:
        return resolve_device(device)
    for model in models.values():
        if isinstance(model, torch.nn.Module) and any(True for _ in model.parameters()):
            return home_device(model, inputs)
    return home_device(None, inputs)


def _synchronize(place: torch.device) -> Callable[[], object] | None:
    if place.type in ("cpu", "meta"):
        return None
    return lambda: torch.accelerator.synchronize(place)


def _prepared(inputs: Inputs, place: torch.device, channels_last: bool) -> Inputs:
    """Return copies of the inputs on the device, so that no model can change another's."""

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach().to(place, copy=True)
        if channels_last and tensor.dim() == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    return map_tensors(copy, inputs)


def _bound(model: Callable[..., Any], inputs: Inputs) -> Callable[[], Any]:
    args, kwargs = as_call(inputs)
    return lambda: model(*args, **kwargs)


def _try(name: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except Exception as error:
        raise ConfigError(
            f"the model '{name}' cannot be called with these inputs ({first_line(error)}): "
            "pass inputs of the shapes and types that its forward takes"
        ) from error


@contextmanager
def _thread_count(threads: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield torch.get_num_threads()
    finally:
        if threads is not None:
            torch.set_num_threads(before)
