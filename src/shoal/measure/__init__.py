"""Measuring: latency, work in MACs, parameters, depth, and whether two networks agree."""

from __future__ import annotations

from shoal.measure.benchmark import Benchmark, benchmark
from shoal.measure.depth import depth
from shoal.measure.latency import Latency, latency_ratio, measure_latency
from shoal.measure.latency_in import EAGER, RUNTIMES, check_runtime, latency_in
from shoal.measure.macs import MacCount, count_macs, count_params
from shoal.measure.rounds import Rounds, clock_timer, time_rounds
from shoal.measure.side_by_side import OnnxRunners, SideBySide, eager_side_by_side
from shoal.measure.stats import Ratio
from shoal.network.agreement import Agreement, compare_outputs, random_like

__all__ = [
    "EAGER",
    "RUNTIMES",
    "Agreement",
    "Benchmark",
    "Latency",
    "MacCount",
    "OnnxRunners",
    "Ratio",
    "Rounds",
    "SideBySide",
    "benchmark",
    "check_runtime",
    "clock_timer",
    "compare_outputs",
    "count_macs",
    "count_params",
    "depth",
    "eager_side_by_side",
    "latency_in",
    "latency_ratio",
    "measure_latency",
    "random_like",
    "time_rounds",
]
