"""One call that measures a network whole: latency, work, parameters, depth, beside a baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Unpack

import torch
from torch import fx, nn

from shoal.errors import ConfigError
from shoal.measure.depth import depth
from shoal.measure.latency import Latency, latency_ratio, measure_latency
from shoal.measure.macs import count_macs, count_params
from shoal.measure.rounds import Ratio, Timing
from shoal.network.inputs import Inputs, batch_size
from shoal.runtimes import EAGER, Runtime


@dataclass(frozen=True)
class Benchmark:
    """What a network costs on this machine.

    Attributes:
        latency: of one batch.
        macs: multiply-accumulates of one sample.
        params: number of parameter elements.
        depth: layers with weights on the longest path; None for a module without a graph.
        batch_size: samples per call.
        uncounted: operations that `macs` leaves out because they are not understood.
        baseline: the same figures of the baseline, from the same rounds.
        speedup: the baseline's latency over the network's, by pairs of rounds: 2 is twice as fast.
        macs_ratio: the baseline's MACs over the network's; None if the network has none.
        params_ratio: likewise for parameters.
    """

    latency: Latency
    macs: int
    params: int
    depth: int | None
    batch_size: int
    uncounted: tuple[str, ...] = ()
    baseline: Benchmark | None = None
    speedup: Ratio | None = None
    macs_ratio: float | None = None
    params_ratio: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values, the baseline's nested."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        nested = {n: v.to_dict() for n, v in values.items() if hasattr(v, "to_dict")}
        return {**values, **nested, "uncounted": list(self.uncounted)}

    def __str__(self) -> str:
        parts = [
            f"{self.latency} for a batch of {self.batch_size} on {self.latency.device}",
            f"{self.macs:,} MACs per sample{' (incomplete)' if self.uncounted else ''}",
            f"{self.params:,} parameters",
        ]
        if self.depth is not None:
            parts.append(f"depth {self.depth} layers")
        if self.speedup is not None:
            parts.append(f"latency, baseline / network: {self.speedup}")
        return "; ".join(parts)


# Long because each of its arguments is explained; the body is short.
def benchmark(
    net: nn.Module,
    inputs: Inputs,
    baseline: nn.Module | None = None,
    *,
    runtime: str | Runtime = EAGER,
    threads: int | None = None,
    channels_last: bool = True,
    device: torch.device | str | None = None,
    clock: Callable[[], float] | None = None,
    **timing: Unpack[Timing],
) -> Benchmark:
    """Measure `net`, and compare it with `baseline` in interleaved rounds.

    Both are measured in eval and inference mode and left exactly as they were.

    Args:
        net: the network, or any module (then its depth is not known).
        inputs: one batch: a tensor, a tuple of them, or a dict of keyword inputs.
        baseline: what to compare with, called with the same inputs.
        runtime: where latency is measured: "eager", "onnxruntime", or a `Runtime` of your own.
        threads: threads on the CPU; None leaves them.
        channels_last: run 4-D inputs in channels_last memory format.
        device: where to measure; by default where the network is.
        clock: returns seconds; by default CUDA's events or the machine's best clock.
        **timing: `warmup`, `repeats`, `min_seconds` and `max_seconds`, as `measure_latency` has
            them.

    Raises:
        ConfigError: a model is not a module or cannot be called with the inputs.
        ShoalError: the runtime is not installed, or a model cannot be translated for it.

    Example:
        >>> import shoal, torch
        >>> images = torch.randn(8, 1, 8, 8)
        >>> dense = shoal.capture(shoal.models.digits_resnet(), images)
        >>> shallow = dense.copy()
        >>> operations = shoal.drop_(shallow, ["layer1.1", "layer2.1"])
        >>> report = shoal.benchmark(shallow, images, baseline=dense, min_seconds=0, repeats=3)
        >>> report.depth, report.baseline.depth, round(report.macs_ratio, 2)
        (10, 14, 1.52)
    """
    models = {"net": net} if baseline is None else {"net": net, "baseline": baseline}
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise ConfigError(f"the {name} must be an nn.Module, not {type(model).__name__}")
    latencies = measure_latency(
        models, inputs, runtime=runtime, threads=threads, channels_last=channels_last,
        device=device, clock=clock, **timing,
    )  # fmt: skip
    figures = {name: _figures(model, inputs, latencies[name]) for name, model in models.items()}
    own = figures["net"]
    if baseline is None:
        return own
    base = figures["baseline"]
    return replace(
        own,
        baseline=base,
        speedup=latency_ratio(latencies["baseline"], latencies["net"]),
        macs_ratio=base.macs / own.macs if own.macs else None,
        params_ratio=base.params / own.params if own.params else None,
    )


def _figures(model: nn.Module, inputs: Inputs, latency: Latency) -> Benchmark:
    macs = count_macs(model, inputs)
    has_graph = isinstance(getattr(model, "graph", None), fx.Graph)
    return Benchmark(
        latency, macs.total, count_params(model), depth(model) if has_graph else None,
        batch_size(inputs), macs.uncounted,
    )  # fmt: skip
