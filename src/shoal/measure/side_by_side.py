"""Several networks in one runtime, timed in the same rounds and compared with one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from shoal.errors import ShoalError
from shoal.measure.latency import Latency, latency_ratio, measure_latency
from shoal.measure.latency_in import EAGER, ONNX_RUNTIME
from shoal.measure.stats import Ratio
from shoal.network.inputs import Inputs
from shoal.runtimes.onnxruntime import OnnxRunner, lacking_package, onnx_latency

__all__ = ["OnnxRunners", "SideBySide", "eager_side_by_side"]


@dataclass(frozen=True)
class SideBySide:
    """Latencies of several networks from the same rounds.

    Attributes:
        runtime: "eager" or "onnxruntime".
        baseline: the name of the network that the others are compared with.
        latencies: by name; empty where the runtime cannot run the baseline.
        missing: by name, why there is no latency of a network.
    """

    runtime: str
    baseline: str
    latencies: Mapping[str, Latency]
    missing: Mapping[str, str]

    def ratio(self, name: str) -> Ratio:
        """Return the baseline's latency over that of `name`, by pairs: 2 is twice as fast."""
        return latency_ratio(self.latencies[self.baseline], self.latencies[name])

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON-ready values."""
        return {
            "runtime": self.runtime,
            "baseline": self.baseline,
            "latency": {name: found.to_dict() for name, found in self.latencies.items()},
            "ratio": {name: self.ratio(name).to_dict() for name in self.latencies},
            "missing": dict(self.missing),
        }


def eager_side_by_side(
    models: Mapping[str, nn.Module],
    inputs: Inputs,
    baseline: str,
    *,
    threads: int | None = None,
    min_seconds: float = 0.5,
    max_seconds: float = 60.0,
) -> SideBySide:
    """Measure networks in eager mode; see `measure_latency` for the options.

    Raises:
        ConfigError: a network cannot be called with the inputs.
    """
    found = measure_latency(
        models, inputs, threads=threads, min_seconds=min_seconds, max_seconds=max_seconds
    )
    return SideBySide(EAGER, baseline, found, {})


class OnnxRunners:
    """Networks opened in ONNX Runtime once, to be timed at several batch sizes.

    Each network is exported, and checked, into a temporary file. What cannot be exported or run is
    left out, and `missing` tells why.

    Args:
        models: by name.
        example: inputs to export with.
        threads: threads of one operation; None takes as many as PyTorch uses here.

    Attributes:
        missing: by name, one line on why a network is left out.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], example: Inputs, *, threads: int | None = None
    ) -> None:
        self.missing: dict[str, str] = {}
        self._runners: dict[str, OnnxRunner] = {}
        lacking = lacking_package()
        for name, model in models.items():
            if lacking is not None:
                self.missing[name] = lacking
                continue
            try:
                self._runners[name] = OnnxRunner.of(model, example, threads=threads)
            except ShoalError as error:
                self.missing[name] = str(error)

    def measure(
        self,
        inputs: Inputs,
        baseline: str,
        *,
        min_seconds: float = 0.5,
        max_seconds: float = 60.0,
    ) -> SideBySide:
        """Measure those that can be run, if the baseline is among them."""
        found: dict[str, Latency] = {}
        missing = dict(self.missing)
        if baseline in self._runners:
            runners = dict(self._runners)
            try:
                found = onnx_latency(
                    runners, inputs, min_seconds=min_seconds, max_seconds=max_seconds
                )
            except ShoalError as error:
                missing |= dict.fromkeys(runners, str(error))
        else:
            why = f"not timed, since the baseline cannot be ({missing.get(baseline, 'unknown')})"
            missing |= dict.fromkeys(self._runners, why)
        return SideBySide(ONNX_RUNTIME, baseline, found, missing)
