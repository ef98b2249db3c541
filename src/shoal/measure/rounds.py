"""Time several calls in interleaved rounds, so that a drifting machine treats all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import TypeAlias, TypedDict

import torch

from shoal.errors import ConfigError, OptionError

__all__ = ["Rounds", "Timer", "Timing", "clock_timer", "device_timer", "round_order", "time_rounds"]

Timer: TypeAlias = Callable[[Callable[[], object], int], float]
"""Runs a call a number of times in a row and returns how many seconds they took together."""

WARMUP = 3
_MIN_ROUNDS = 3
_MAX_INNER = 1_000_000


class Timing(TypedDict, total=False):
    """How long to measure: keyword arguments that every measurement takes.

    Attributes:
        warmup: untimed calls of each before anything else; 3 by default.
        repeats: number of rounds, unless the limits in seconds say otherwise; 20.
        min_seconds: least time of all rounds together, in seconds; 0.5.
        max_seconds: no round is started after this many seconds, but three are always done; 60.
    """

    warmup: int
    repeats: int
    min_seconds: float
    max_seconds: float


@dataclass(frozen=True)
class Rounds:
    """The times of several calls, round by round.

    Attributes:
        seconds: by name, seconds per call in each round.
        inner: by name, how many calls in a row make one timed sample.
    """

    seconds: dict[str, tuple[float, ...]]
    inner: dict[str, int]


def clock_timer(
    clock: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[], object] | None = None,
) -> Timer:
    """Return a timer that reads `clock` (in seconds) before and after the calls.

    Args:
        clock: where the time comes from.
        synchronize: waits until the device has finished; None on the CPU.
    """
    wait = synchronize or (lambda: None)

    def timed(call: Callable[[], object], inner: int) -> float:
        wait()
        start = clock()
        for _ in range(inner):
            call()
        wait()
        return clock() - start

    return timed


def device_timer(device: torch.device) -> Timer:
    """Return the best timer for a device: events on CUDA, else the clock after synchronising."""
    if device.type == "cuda":
        return _event_timer(device)
    if device.type in ("cpu", "meta"):
        return clock_timer()
    return clock_timer(synchronize=lambda: torch.accelerator.synchronize(device))


def _event_timer(device: torch.device) -> Timer:
    def timed(call: Callable[[], object], inner: int) -> float:
        with torch.cuda.device(device):
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            for _ in range(inner):
                call()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3  # in milliseconds

    return timed


def round_order(names: Sequence[str], index: int) -> list[str]:
    """Return the order of round `index`: the names rotated by it, every other cycle backwards.

    So each name is equally often in each place, and follows each of its neighbours both ways.
    """
    shift = index % len(names)
    order = [*names[shift:], *names[:shift]]
    return order[::-1] if (index // len(names)) % 2 else order


def time_rounds(
    calls: Mapping[str, Callable[[], object]],
    *,
    warmup: int = WARMUP,
    repeats: int = 20,
    min_seconds: float = 0.5,
    max_seconds: float = 60.0,
    min_sample_ms: float = 5.0,
    timer: Timer | None = None,
) -> Rounds:
    """Time each call once per round until there are enough rounds.

    A timed sample is as many calls in a row as take `min_sample_ms`, far above what a clock can
    resolve. Rounds go on until there are `repeats` of them and they took `min_seconds`, and stop
    earlier, after three at least, once warm-up and rounds together took `max_seconds`. The garbage
    collector is off meanwhile.

    Args:
        calls: what to time, by name; each takes no argument.
        warmup: see `Timing`.
        repeats: see `Timing`.
        min_seconds: see `Timing`.
        max_seconds: see `Timing`.
        min_sample_ms: least duration of one timed sample, in milliseconds.
        timer: times a number of calls; the CPU's clock by default.

    Raises:
        ConfigError: there is nothing to time, or a limit makes no sense.
    """
    _check(calls, warmup, repeats, min_seconds, max_seconds)
    timer = timer or clock_timer()
    names = list(calls)
    with _no_collection():
        inner, spent = _prepare(calls, warmup, min_sample_ms / 1e3, timer)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        in_rounds, done = 0.0, 0
        while done < _MIN_ROUNDS or (
            (done < repeats or in_rounds < min_seconds) and spent + in_rounds < max_seconds
        ):
            for name in round_order(names, done):
                took = timer(calls[name], inner[name])
                in_rounds += took
                seconds[name].append(took / inner[name])
            done += 1
    return Rounds({name: tuple(values) for name, values in seconds.items()}, inner)


def _check(calls: Mapping[str, object], warmup: int, repeats: int, low: float, high: float) -> None:
    if not calls:
        raise ConfigError("there is nothing to time: give at least one model")
    for option, value, least in (("warmup", warmup, 0), ("repeats", repeats, 1)):
        if value < least:
            raise OptionError(option, value, f"at least {least}")
    if not 0 <= low <= high:
        raise OptionError("min_seconds", low, f"0 to max_seconds, which is {high}")


def _prepare(
    calls: Mapping[str, Callable[[], object]], warmup: int, min_sample: float, timer: Timer
) -> tuple[dict[str, int], float]:
    """Warm up; return how many calls of each fill a sample, and the seconds that this took."""
    inner: dict[str, int] = {}
    spent = 0.0
    for name, call in calls.items():
        for _ in range(warmup):
            spent += timer(call, 1)
        count, took = 1, timer(call, 1)
        spent += took
        while took < min_sample and count < _MAX_INNER:
            count = _next_count(count, took, min_sample)
            took = timer(call, count)
            spent += took
        inner[name] = count
    return inner, spent


def _next_count(count: int, took: float, min_sample: float) -> int:
    # A little past the aim, and at most tenfold: the first, tiny times are mostly noise.
    wanted = ceil(1.2 * count * min_sample / took) if took > 0 else 10 * count
    return min(max(wanted, count + 1), 10 * count, _MAX_INNER)


@contextmanager
def _no_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
