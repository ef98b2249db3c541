"""Deployments, a runtime and a batch size each: measuring in several, weighing what they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import harmonic_mean
from typing import Any, TypeAlias, Unpack

from shoal.errors import OptionError
from shoal.measure.latency import Latency, make_all, measure_latency
from shoal.measure.ratio import Ratio
from shoal.measure.rounds import Timing
from shoal.network.inputs import Inputs, map_tensors, repeat_rows
from shoal.runtimes.runtime import EAGER, Runtime, find_runtime

Runtimes: TypeAlias = str | Runtime | Sequence[str | Runtime]
"""One runtime or several: a name, names with commas between them, a `Runtime`, or a list."""

Batches: TypeAlias = int | Sequence[int]
"""One batch size or several."""


@dataclass(frozen=True)
class Deployment:
    """Where and how a network runs for its user, as far as latency depends on it."""

    runtime: str | Runtime = EAGER
    batch: int = 1  # samples per call

    @property
    def name(self) -> str:
        """The runtime's name."""
        return self.runtime if isinstance(self.runtime, str) else self.runtime.name

    def __str__(self) -> str:
        return f"{self.name} at batch {self.batch}"


def deployments(runtime: Runtimes = EAGER, batch: Batches = 1) -> tuple[Deployment, ...]:
    """Return each runtime at each batch size, runtime by runtime; each once.

    Raises:
        OptionError: there is no runtime or batch size, or a batch size is below 1.

    Example:
        >>> from shoal.measure import deployments
        >>> [str(one) for one in deployments("eager,onnxruntime", 32)]
        ['eager at batch 32', 'onnxruntime at batch 32']
    """
    given = [runtime] if isinstance(runtime, str | Runtime) else list(runtime)
    names: list[str | Runtime] = []
    for one in given:
        names += one.split(",") if isinstance(one, str) else [one]
    names = [one.strip() if isinstance(one, str) else one for one in names]
    if not names or "" in names:
        raise OptionError("runtime", runtime, "a runtime's name, or several with commas between")
    sizes = [batch] if isinstance(batch, int) else list(batch)
    if not sizes or min(sizes) < 1:
        raise OptionError("batch", batch, "at least 1")
    return tuple(dict.fromkeys(Deployment(one, size) for one in names for size in sizes))


def measure_in(
    where: Sequence[Deployment],
    models: Mapping[str, Callable[..., Any]],
    inputs: Inputs,
    **timing: Unpack[Timing],
) -> list[dict[str, Latency]]:
    """Return the latencies of models in each deployment, by `measure_latency`.

    The inputs may be of any batch size; see `sized`. Where a runtime is timed at several, models
    are made to run there once.
    """
    made: dict[str | Runtime, Mapping[str, Callable[..., Any]]] = {}
    for runtime, sizes in Counter(one.runtime for one in where).items():
        if sizes > 1:
            made[runtime] = make_all(find_runtime(runtime), models, inputs)
    return [
        measure_latency(
            made.get(one.runtime, models), sized(inputs, one.batch), runtime=one.runtime, **timing
        )
        for one in where
    ]


def sized(inputs: Inputs, batch: int) -> Inputs:
    """Return inputs of a batch size: the first samples, repeated if there are fewer."""
    made: Inputs = map_tensors(lambda tensor: repeat_rows(tensor, batch), inputs)
    return made


def together(ratios: Sequence[Ratio]) -> Ratio:
    """Return what the ratios of before to after in several deployments say together.

    Each deployment counts by the share of its own time: with that before as 1, the time after is
    1 / r, and the ratio of the sums is n / (1/r₁ + … + 1/rₙ), the harmonic mean. So the slowest
    runtime and the largest batch do not decide alone. The ends of the interval are those of all
    together, which is wider than need be; a doubt about one is a doubt about all.
    """
    if len(ratios) == 1:
        return ratios[0]
    ends = ("median", "q1", "q3", "low", "high")
    means = {name: harmonic_mean([getattr(one, name) for one in ratios]) for name in ends}
    return replace(
        ratios[0],
        **means,
        confidence=min(one.confidence for one in ratios),
        pairs=min(one.pairs for one in ratios),
        doubt=next((one.doubt for one in ratios if one.doubt), ""),
    )
