"""Time several calls in interleaved rounds, so that a drifting machine treats all of them alike.

What the rounds say: quartiles, ratios of pairs, and how certain a median is. The interval is that
of `scipy.stats.quantile_test`, which gives none below six values, does not say what certainty it
reaches, and takes a second to import.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import ceil, comb
from typing import Any, TypeAlias, TypedDict

import numpy as np
import torch

from shoal.errors import ConfigError, OptionError

Timer: TypeAlias = Callable[[Callable[[], object], int], float]
"""Runs a call a number of times in a row and returns how many seconds they took together."""

WARMUP = 3
_MIN_ROUNDS = 3
_MIN_SAMPLE = 5e-3  # seconds of one timed sample
_MAX_INNER = 1_000_000


class Timing(TypedDict, total=False):
    """How long to measure: keyword arguments that every measurement takes."""

    warmup: int  # untimed calls of each before anything else; 3 by default
    repeats: int  # number of rounds, unless the limits in seconds say otherwise; 20
    min_seconds: float  # least time of all rounds together; 0.5
    max_seconds: float  # no round is started after these, but three are always done; 60


@dataclass(frozen=True)
class Rounds:
    """The times of several calls, by their names."""

    seconds: dict[str, tuple[float, ...]]  # per call in each round
    inner: dict[str, int]  # how many calls in a row make one timed sample


def clock_timer(
    clock: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[], object] = lambda: None,
) -> Timer:
    """Return a timer that reads `clock`, in seconds; `synchronize` waits for the device."""

    def timed(call: Callable[[], object], inner: int) -> float:
        synchronize()
        start = clock()
        for _ in range(inner):
            call()
        synchronize()
        return clock() - start

    return timed


def device_timer(queue: torch.device | None, clock: Callable[[], float] | None = None) -> Timer:
    """Return the best timer for calls that a device queues, or None: CUDA's events, or a clock."""
    if queue is None:
        return clock_timer(clock or time.perf_counter)
    if clock is None and queue.type == "cuda":
        return _event_timer(queue)
    return clock_timer(clock or time.perf_counter, lambda: torch.accelerator.synchronize(queue))


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
    """Return the order of round `index`: the names rotated by it, every other cycle backwards."""
    # So each name is equally often in each place, and follows each of its neighbours both ways.
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
    timer: Timer | None = None,
) -> Rounds:
    """Time each call once per round until there are enough rounds.

    A timed sample is as many calls in a row as take 5 ms, far above what a clock can resolve.
    Rounds go on until there are `repeats` of them and they took `min_seconds`, and stop earlier,
    after three at least, once warm-up and rounds together took `max_seconds`. The garbage collector
    is off meanwhile. `timer` is the CPU's clock by default; see `Timing` for the rest.

    Raises:
        ConfigError: there is nothing to time, or a limit makes no sense.
    """
    if not calls:
        raise ConfigError("there is nothing to time: give at least one model")
    for option, value, least in (("warmup", warmup, 0), ("repeats", repeats, 1)):
        if value < least:
            raise OptionError(option, value, f"at least {least}")
    if not 0 <= min_seconds <= max_seconds:
        raise OptionError("min_seconds", min_seconds, f"0 to max_seconds, which is {max_seconds}")
    timer, names = timer or clock_timer(), list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with _no_collection():
        inner, spent = _prepare(calls, warmup, timer)
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


def _prepare(
    calls: Mapping[str, Callable[[], object]], warmup: int, timer: Timer
) -> tuple[dict[str, int], float]:
    """Warm up; return how many calls of each fill a sample, and the seconds that this took."""
    inner: dict[str, int] = {}
    spent = 0.0
    for name, call in calls.items():
        for _ in range(warmup):
            spent += timer(call, 1)
        count, took = 1, timer(call, 1)
        spent += took
        while took < _MIN_SAMPLE and count < _MAX_INNER:
            # A little past the aim, and at most tenfold: the first, tiny times are mostly noise.
            wanted = ceil(1.2 * count * _MIN_SAMPLE / took) if took > 0 else 10 * count
            count = min(max(wanted, count + 1), 10 * count, _MAX_INNER)
            took = timer(call, count)
            spent += took
        inner[name] = count
    return inner, spent


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


# ---------------------------------------------------------------------- what they say


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile, linearly interpolated."""
    low, middle, high = np.percentile(np.asarray(values, dtype=float), [25, 50, 75])
    return float(low), float(middle), float(high)


def median_interval(
    values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return the ends of an interval for the true median, and its certainty between 0 and 1.

    The sign-test interval: the k-th smallest and k-th largest value, whatever the distribution,
    with the largest k whose certainty is at least `confidence`. Fewer than six values cannot give
    95 %: then it is the whole range, with the certainty that it has.
    """
    ordered = sorted(values)
    n = len(ordered)
    k, certainty = 1, 1 - 2 * _tail(n, 0)
    while 2 * (k + 1) <= n and 1 - 2 * _tail(n, k) >= confidence:
        k, certainty = k + 1, 1 - 2 * _tail(n, k)
    return ordered[k - 1], ordered[n - k], max(0.0, certainty)


def _tail(n: int, k: int) -> float:
    """The chance of at most `k` heads in `n` throws of a fair coin."""
    return sum(comb(n, i) for i in range(k + 1)) / 2**n


@dataclass(frozen=True)
class Ratio:
    """The ratio of two quantities measured in pairs, one pair per round.

    A machine that slows down slows both of a pair, so the ratio of pairs holds where the ratio of
    two separately measured medians does not.
    """

    median: float  # of the rounds' ratios, as the quartiles
    q1: float
    q3: float
    low: float  # the ends of an interval for the true median ratio
    high: float
    confidence: float  # of the interval, between 0 and 1 (at least 0.95 from six rounds on)
    pairs: int  # the number of rounds

    @classmethod
    def of(cls, numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
        """Return the ratio of round i of one to round i of the other; `ConfigError` without any."""
        if len(numerators) != len(denominators) or not numerators:
            raise ConfigError(
                f"a ratio of pairs needs equally many rounds, not {len(numerators)} and "
                f"{len(denominators)}: measure both in the same call"
            )
        ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
        q1, median, q3 = quartiles(ratios)
        low, high, certainty = median_interval(ratios)
        return cls(median, q1, q3, low, high, certainty, len(ratios))

    @property
    def settled(self) -> bool:
        """Whether the interval, at 95 % or more, leaves no doubt which of the two is larger."""
        return self.confidence >= 0.95 and not self.low <= 1.0 <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.median:.2f} × ({self.q1:.2f} to {self.q3:.2f})"
