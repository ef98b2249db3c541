"""Measuring: latency, work, parameters, depth, rectifier evaluations, whether networks agree."""

from __future__ import annotations

from shoal.measure.deployment import (
    Batches,
    Deployment,
    Runtimes,
    deployments,
    measure_in,
    sized,
    together,
)
from shoal.measure.host import machine_facts
from shoal.measure.latency import (
    Benchmark,
    InRuntime,
    Latency,
    SideBySide,
    benchmark,
    latency_ratio,
    measure_latency,
)
from shoal.measure.ratio import Ratio
from shoal.measure.rectifiers import SiteStage, rectifier_evaluations, rectifier_stages
from shoal.measure.rounds import Rounds, Timing, clock_timer, time_rounds
from shoal.measure.size import MacCount, count_macs, count_params, depth
from shoal.network.agreement import Agreement, compare_outputs, random_like

__all__ = [
    "Agreement",
    "Batches",
    "Benchmark",
    "Deployment",
    "InRuntime",
    "Latency",
    "MacCount",
    "Ratio",
    "Rounds",
    "Runtimes",
    "SideBySide",
    "SiteStage",
    "Timing",
    "benchmark",
    "clock_timer",
    "compare_outputs",
    "count_macs",
    "count_params",
    "deployments",
    "depth",
    "latency_ratio",
    "machine_facts",
    "measure_in",
    "measure_latency",
    "random_like",
    "rectifier_evaluations",
    "rectifier_stages",
    "sized",
    "time_rounds",
    "together",
]
