"""Time several calls in interleaved rounds, so that a drifting machine treats all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log
from typing import TypeAlias, TypedDict

import torch

from shoal.errors import ConfigError, OptionError
from shoal.measure.machine import Watch
from shoal.measure.ratio import block_times, typical, unsteady

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
    attempts: int  # how often it is measured at most, until the machine was calm meanwhile; 2


@dataclass(frozen=True)
class Rounds:
    """The times of several calls, by their names."""

    seconds: dict[str, tuple[float, ...]]  # per call in each round
    inner: dict[str, int]  # how many calls in a row make one timed sample
    doubt: str = ""  # what disturbed the machine meanwhile, in words; "" for nothing

    @cached_property
    def blocks(self) -> dict[str, tuple[float, ...]]:
        """The typical time of each call in each block of rounds, in seconds; see `block_times`."""
        return dict(zip(self.seconds, block_times(list(self.seconds.values())), strict=True))

    @property
    def calm(self) -> bool:
        """Whether nothing disturbed the machine, as far as it knows and as the blocks show.

        That is by the blocks of all calls together: one of many is unsteady by chance.
        """
        together = list(map(typical, zip(*self.blocks.values(), strict=True)))
        return not (self.doubt or unsteady(together))


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
    attempts: int = 2,
    timer: Timer | None = None,
    watch: Watch | None = None,
) -> Rounds:
    """Time each call once per round until there are enough rounds.

    A timed sample is as many calls in a row as take 5 ms, far above what a clock can resolve.
    Rounds go on until there are `repeats` of them and they took `min_seconds`, and stop earlier,
    after three at least, once warm-up and rounds together took `max_seconds`. The garbage collector
    is off meanwhile. `timer` is the CPU's clock by default; see `Timing` for the rest.

    Where `watch` tells of other work on the machine, or blocks of rounds disagree, all rounds are
    repeated, as long as `attempts` and `max_seconds` allow it. If none was calm, the fastest
    attempt counts, with its doubt.

    Raises:
        ConfigError: there is nothing to time, or a limit makes no sense.
    """
    if not calls:
        raise ConfigError("there is nothing to time: give at least one model")
    for option, value, least in (("warmup", warmup, 0), ("repeats", repeats, 1),
                                 ("attempts", attempts, 1)):  # fmt: skip
        if value < least:
            raise OptionError(option, value, f"at least {least}")
    if not 0 <= min_seconds <= max_seconds:
        raise OptionError("min_seconds", min_seconds, f"0 to max_seconds, which is {max_seconds}")
    timer, tried = timer or clock_timer(), []
    with _no_collection():
        inner, spent = _prepare(calls, warmup, timer)
        while True:
            doubt = watch() if watch is not None else str
            seconds, took = _rounds(calls, inner, timer, repeats, min_seconds, max_seconds - spent)
            found = Rounds(seconds, inner, doubt())
            tried.append(found)
            spent += took
            if found.calm:
                return found
            if len(tried) >= attempts or spent + took > max_seconds:
                return min(tried, key=lambda one: sum(map(log, map(typical, one.blocks.values()))))


def _rounds(
    calls: Mapping[str, Callable[[], object]],
    inner: Mapping[str, int],
    timer: Timer,
    repeats: int,
    min_seconds: float,
    max_seconds: float,
) -> tuple[dict[str, tuple[float, ...]], float]:
    """Return the seconds of each call in each round, and those of all together."""
    names, took, done = list(calls), 0.0, 0
    seconds: dict[str, list[float]] = {name: [] for name in names}
    while done < _MIN_ROUNDS or ((done < repeats or took < min_seconds) and took < max_seconds):
        for name in round_order(names, done):
            sample = timer(calls[name], inner[name])
            took += sample
            seconds[name].append(sample / inner[name])
        done += 1
    return {name: tuple(values) for name, values in seconds.items()}, took


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
