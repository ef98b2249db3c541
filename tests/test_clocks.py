"""The benchmark of clocks: how it judges and counts."""

from __future__ import annotations

import pytest

from scripts import script
from shoal.measure import Latency

clocks = script("benchmarks/clocks.py")


def latency(*rounds: float, disturbed: str = "") -> Latency:
    return Latency(1.0, 1.0, 1.0, len(rounds), 1, 1, "cpu", 1, rounds, disturbed=disturbed)


@pytest.mark.parametrize("n", [6, 7, 20, 33])
def test_the_interval_before_was_scipys(n: int) -> None:
    from scipy.stats import quantile_test

    values = [float(7 * i % n) for i in range(n)]
    interval = quantile_test(values, p=0.5).confidence_interval(0.95)
    assert clocks.sign_test(values) == (interval.low, interval.high)


def test_what_misses_the_truth_is_counted_and_told() -> None:
    same, busy = (1.0,) * 10, "the machine was busy"
    hit = clocks.judged(latency(*same), latency(*same), 1.0)
    miss = clocks.judged(latency(*same), latency(*same), 1.25)
    marked = clocks.judged(latency(*same, disturbed=busy), latency(*same), 1.25)
    pairs = [(hit, hit), (hit, miss), (hit, marked)]
    rows = [
        {"setting": "loaded", "seconds": 1.0, "ratios": {"itself": a, "four of five": b}}
        for a, b in pairs
    ]
    itself, other = clocks.summary(rows)
    assert (itself["cover"], itself["marked"], itself["cover_or_marked"]) == (3, 0, 3)
    assert (other["cover"], other["marked"], other["cover_or_marked"]) == (1, 1, 2)
    assert other["sign_test_covers"] == 1
    told = clocks.misses(rows)
    assert told.count("truth 1.250") == 1
    assert "| loaded | four of five | 1.250 | 3 | 1 | 1 | 2 | 1 |" in clocks.table([other])
