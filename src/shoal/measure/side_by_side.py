"""Several networks in one runtime, timed in the same rounds and compared with one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Unpack

from torch import nn

from shoal.errors import ShoalError
from shoal.measure.latency import Latency, latency_ratio, measure_latency
from shoal.measure.rounds import Timing
from shoal.measure.stats import Ratio
from shoal.network.inputs import Inputs
from shoal.runtimes.runtime import Runner, Runtime, open_runtime

__all__ = ["InRuntime", "SideBySide"]


@dataclass(frozen=True)
class SideBySide:
    """Latencies of several networks from the same rounds.

    Attributes:
        runtime: its name.
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
        """Return the figures as JSON values."""
        return {
            "runtime": self.runtime,
            "baseline": self.baseline,
            "latency": {name: found.to_dict() for name, found in self.latencies.items()},
            "ratio": {name: self.ratio(name).to_dict() for name in self.latencies},
            "missing": dict(self.missing),
        }


class InRuntime:
    """Networks made to run in a runtime once, to be timed at several batch sizes.

    Args:
        runtime: "eager", "onnxruntime", or a `Runtime` of your own.
        models: by name.
        example: inputs to make them with, and to compare what was made with the network.
        threads: threads on the CPU; None takes as many as PyTorch uses here.

    Attributes:
        missing: by name, one line on why a network is left out.

    Raises:
        NameNotFoundError: there is no such runtime.
    """

    def __init__(
        self,
        runtime: str | Runtime,
        models: Mapping[str, nn.Module],
        example: Inputs,
        *,
        threads: int | None = None,
    ) -> None:
        self.missing: dict[str, str] = {}
        self._runners: dict[str, Runner] = {}
        where = open_runtime(runtime, threads=threads)
        self.name = where.name
        lacking = where.lacking()
        for name, model in models.items():
            if lacking is not None:
                self.missing[name] = lacking
                continue
            try:
                self._runners[name] = where.make(model, example, check=True)
            except ShoalError as error:
                self.missing[name] = str(error)

    def measure(self, inputs: Inputs, baseline: str, **timing: Unpack[Timing]) -> SideBySide:
        """Measure those that can be run, if the baseline is among them; see `Timing`."""
        found: dict[str, Latency] = {}
        missing = dict(self.missing)
        if baseline in self._runners:
            try:
                found = measure_latency(self._runners, inputs, **timing)
            except ShoalError as error:
                missing |= dict.fromkeys(self._runners, str(error))
        else:
            why = f"not timed, since the baseline cannot be ({missing.get(baseline, 'unknown')})"
            missing |= dict.fromkeys(self._runners, why)
        return SideBySide(self.name, baseline, found, missing)
