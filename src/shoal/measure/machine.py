"""What else the machine did while something was measured: other programs' work, and steal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import psutil

Watch: TypeAlias = Callable[[], Callable[[], str]]
"""Begins to watch the machine; what it returns says in words what disturbed it, or ""."""

_LOST = 0.10  # share of the processor time that a measurement may lack
_TICK = 0.01  # seconds: the step of the system's counters, which are off by one at either end


@dataclass(frozen=True)
class Counters:
    """Seconds since some time in the past, summed over the processors that this process may use."""

    wall: float  # on the clock
    busy: float  # of processors, with any program
    stolen: float  # that a virtual machine's host gave to others; 0 where it is not known
    own: float  # of processors, with this process
    processors: int

    @classmethod
    def read(cls) -> Counters:
        """Read the system's counters."""
        each = psutil.cpu_times(percpu=True)
        if hasattr(os, "sched_getaffinity"):
            each = [each[i] for i in os.sched_getaffinity(0) if i < len(each)] or each
        names = ("user", "nice", "system", "irq", "softirq")  # those that the system has
        busy = sum(getattr(times, name, 0.0) for times in each for name in names)
        stolen = sum(getattr(times, "steal", 0.0) for times in each)
        return cls(time.perf_counter(), busy, stolen, time.process_time(), len(each))


def disturbance(before: Counters, after: Counters, threads: int) -> str:
    """Return what took processor time from a measurement that needs `threads`; "" for nothing.

    Other programs disturb by what they need beyond the processors that are left to them.
    """
    wall, processors = after.wall - before.wall, after.processors
    if wall <= 0.0 or after.processors != before.processors:
        return ""
    stolen = after.stolen - before.stolen
    foreign = (after.busy - before.busy) - (after.own - before.own)
    beyond = wall * max(0, processors - threads) + _TICK * processors
    lost = max(0.0, foreign + stolen - beyond) / (wall * min(threads, processors))
    if lost <= _LOST:
        return ""
    who = "other programs" if foreign >= stolen else "the machine's host"
    share = 100 * min(1.0, lost)
    return f"the machine was busy: {who} took {share:.0f} % of the processor time it needed"


def watch(threads: int) -> Watch:
    """Return what watches this machine for a measurement that needs so many threads."""

    def begin() -> Callable[[], str]:
        before = Counters.read()
        return lambda: disturbance(before, Counters.read(), threads)

    return begin
