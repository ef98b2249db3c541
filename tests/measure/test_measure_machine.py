"""What is seen of other work on the machine."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from shoal.measure import machine
from shoal.measure.machine import Counters, disturbance, watch

BEFORE = Counters(wall=100.0, busy=50.0, stolen=5.0, own=20.0, processors=2)


def after(
    seconds: float, *, foreign: float = 0.0, stolen: float = 0.0, own: float = 0.0
) -> Counters:
    """The counters so many seconds later, with these seconds of processors spent."""
    return Counters(
        BEFORE.wall + seconds, BEFORE.busy + own + foreign, BEFORE.stolen + stolen,
        BEFORE.own + own, BEFORE.processors,
    )  # fmt: skip


def test_a_machine_of_ones_own_is_calm() -> None:
    assert disturbance(BEFORE, after(1.0, own=2.0), threads=2) == ""
    assert disturbance(BEFORE, after(1.0, own=1.9, foreign=0.1), threads=2) == ""  # a daemon


def test_other_programs_disturb_by_what_they_take() -> None:
    found = disturbance(BEFORE, after(1.0, own=1.0, foreign=1.02), threads=2)
    assert found == (
        "the machine was busy: other programs took 50 % of the processor time it needed"
    )


def test_processors_that_are_left_over_are_theirs() -> None:
    assert disturbance(BEFORE, after(1.0, own=1.0, foreign=1.0), threads=1) == ""
    assert "took 100 %" in disturbance(BEFORE, after(1.0, own=0.5, foreign=2.02), threads=1)
    wide = replace(BEFORE, processors=16)
    later = replace(after(1.0, own=4.0, foreign=8.0), processors=16)
    assert disturbance(wide, later, threads=4) == ""


def test_time_that_the_host_takes_is_told_as_such() -> None:
    found = disturbance(BEFORE, after(1.0, own=1.6, stolen=0.42), threads=2)
    assert found == (
        "the machine was busy: the machine's host took 20 % of the processor time it needed"
    )


def test_steps_of_the_counters_are_no_work() -> None:
    assert disturbance(BEFORE, after(0.05, own=0.08, foreign=0.02), threads=2) == ""
    assert disturbance(BEFORE, BEFORE, threads=2) == ""


def test_the_systems_counters_are_read() -> None:
    first = Counters.read()
    until = time.process_time() + 0.03
    while time.process_time() < until:
        pass
    second = Counters.read()
    assert second.own - first.own >= 0.03
    assert second.wall > first.wall
    assert second.busy >= first.busy > 0.0
    assert first.processors >= 1


def test_what_a_system_does_not_count_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    like_windows = SimpleNamespace(user=3.0, system=2.0, idle=9.0, interrupt=0.5, dpc=0.5)
    monkeypatch.setattr(machine.psutil, "cpu_times", lambda percpu: [like_windows] * 4)
    monkeypatch.delattr(machine.os, "sched_getaffinity", raising=False)
    found = Counters.read()
    assert (found.busy, found.stolen, found.processors) == (20.0, 0.0, 4)


def test_a_watch_tells_of_the_time_between(monkeypatch: pytest.MonkeyPatch) -> None:
    read = iter([BEFORE, after(2.0, own=2.0, foreign=2.0)])
    monkeypatch.setattr(Counters, "read", classmethod(lambda cls: next(read)))
    begin = watch(threads=2)
    assert "other programs took" in begin()()
