"""Latency in the runtime that a network will be used in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from shoal.errors import ShoalError, unknown_name
from shoal.measure.latency import Latency, measure_latency
from shoal.network.inputs import Inputs
from shoal.runtimes.onnxruntime import lacking_package, onnx_latency

__all__ = ["EAGER", "ONNX_RUNTIME", "RUNTIMES", "check_runtime", "latency_in"]

EAGER, ONNX_RUNTIME = "eager", "onnxruntime"
RUNTIMES = (EAGER, ONNX_RUNTIME)


def check_runtime(runtime: str) -> None:
    """Raise unless networks can be timed in a runtime here.

    Raises:
        NameNotFoundError: there is no such runtime.
        ShoalError: a package that it needs is not installed.
    """
    if runtime not in RUNTIMES:
        raise unknown_name("runtime", runtime, RUNTIMES)
    lacking = lacking_package() if runtime == ONNX_RUNTIME else None
    if lacking is not None:
        raise ShoalError(lacking)


def latency_in(
    runtime: str, models: Mapping[str, nn.Module], inputs: Inputs, **options: Any
) -> dict[str, Latency]:
    """Measure modules in interleaved rounds, eagerly or in ONNX Runtime.

    For ONNX Runtime each module is exported, without the comparison that `shoal.export` makes.

    Args:
        runtime: "eager" or "onnxruntime".
        models: by name.
        inputs: one batch: a tensor, a tuple of them, or a dict of keyword inputs.
        **options: `warmup`, `repeats`, `min_seconds` and `max_seconds` of `measure_latency`.

    Raises:
        NameNotFoundError: there is no such runtime.
        ConfigError: a module cannot be called with the inputs.
        ShoalError: a module cannot be exported.
    """
    check_runtime(runtime)
    if runtime == EAGER:
        return measure_latency(models, inputs, **options)
    return onnx_latency(models, inputs, check=False, **options)
