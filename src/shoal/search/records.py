"""What a run knows: the figures of each network it made, and the record of the whole search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from shoal.errors import RunError, ShoalError
from shoal.merge.report import MergeReport

__all__ = ["FORMAT", "LatencyReport", "Metrics", "RunRecord", "Step", "chosen", "lineage"]

FORMAT = 2
"""Of `result.json`."""

_LATER = ("ended", "begun_from", "removed", "total", "unit")


@dataclass(frozen=True)
class Metrics:
    """The figures of one network.

    Attributes:
        top1_val: accuracy on the validation data, in percent; all choices follow from it.
        top1_test: accuracy on the test data, in percent; reported only. None without test data.
        macs: multiply-accumulates of one sample.
        params: number of parameter elements.
        depth: layers with weights on the longest path.
        latency_ms: median time of one call, in milliseconds, at the run's latency batch size.
    """

    top1_val: float
    top1_test: float | None
    macs: int
    params: int
    depth: int
    latency_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)

    def timed(self, latency_ms: float) -> Metrics:
        """Return the figures with another latency."""
        return replace(self, latency_ms=latency_ms)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Metrics:
        """Read what `to_dict` wrote; raises `RunError` if something is missing."""
        try:
            return cls(**{field.name: data[field.name] for field in fields(cls)})
        except KeyError as error:
            raise RunError(f"a step's record has no {error}: the run's folder is damaged") from None


@dataclass(frozen=True)
class Step:
    """One removal with the fine-tuning after it.

    Attributes:
        step: its number, from 1; 0 is the dense network.
        operation: what was done: "linearize", "drop", "collapse", "replace", a word of the method's
            own, or several of these with "+" between; "dense" for step 0, and "fine-tune" where
            nothing was changed and the network only trained.
        names: the sites or blocks it was done to.
        metrics: the figures after fine-tuning.
        sites_left: sites that have their rectifier.
        scores: what the criterion said of all candidates before the removal; infinite, and null in
            JSON, where importance is divided by latency and the removal saves none.
        settled: whether the scores were certain of the lowest; None where not known.
        top1_val_before: validation accuracy after the removal and before fine-tuning, in percent.
        epochs: epochs of fine-tuning.
        seconds: time of the whole step.
        latency_ratio: dense latency over this network's, measured in the same rounds; above 1 is
            faster.
        latency_ratio_low: lower end of the 95 % interval of that ratio. If 1 lies within, no
            difference was measurable.
        latency_ratio_high: its upper end.
        within: whether the accuracy is within the allowed drop from dense and, after the last
            training, not below what it was before.
        notes: what else happened.
        energy: what its training took, as JSON values of the search's meter; None without one.
        ended: of a training after the search: why the search had ended.
        begun_from: the number of the step whose network this one was made of.
        removed: how many are gone in the network, as the method counts; `total` there were, and
            `unit` says of what.
    """

    step: int
    operation: str
    metrics: Metrics
    sites_left: int
    epochs: int
    seconds: float
    latency_ratio: float
    latency_ratio_low: float
    latency_ratio_high: float
    within: bool
    names: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    settled: bool | None = None
    top1_val_before: float | None = None
    notes: tuple[str, ...] = ()
    energy: Mapping[str, Any] | None = None
    ended: str = ""
    begun_from: int | None = None
    removed: int = 0
    total: int | None = None
    unit: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the step as flat JSON values: its own fields and the metrics' beside them."""
        skipped = ("metrics", "energy")
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skipped}
        # JSON has no infinity, which stands for a removal that saves nothing.
        scores = {n: score if math.isfinite(score) else None for n, score in self.scores.items()}
        own |= {"names": list(self.names), "scores": scores, "notes": list(self.notes)}
        if self.energy is not None:
            own["energy"] = dict(self.energy)
        return own | self.metrics.to_dict()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Step:
        """Read what `to_dict` wrote; raises `RunError` if something is missing."""
        metrics = Metrics.from_dict(data)
        own = [f.name for f in fields(cls) if f.name not in ("metrics", "energy")]
        try:
            # Older records lack these.
            optional = {f.name: f.default for f in fields(cls) if f.name in _LATER}
            values = {name: data[name] for name in own if name not in optional}
            values |= {name: data.get(name, default) for name, default in optional.items()}
            if data.get("energy") is not None:
                values["energy"] = dict(data["energy"])
        except KeyError as error:
            raise RunError(f"a step's record has no {error}: the run's folder is damaged") from None
        values |= {"names": tuple(values["names"]), "notes": tuple(values["notes"])}
        values["scores"] = {n: math.inf if s is None else s for n, s in values["scores"].items()}
        return cls(metrics=metrics, **values)


def chosen(steps: Sequence[Step]) -> Step:
    """Return the step whose network is the result: the last that is good enough."""
    return max((step for step in steps if step.within), key=lambda step: step.step)


def lineage(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that made the result, in order."""
    by_number = {step.step: step for step in steps}
    last = chosen(steps)
    line = [last]
    while last.step > 0:
        last = by_number[last.step - 1 if last.begun_from is None else last.begun_from]
        line.append(last)
    return line[::-1]


@dataclass(frozen=True)
class LatencyReport:
    """The end of a search: dense and result as they are and merged, from the same rounds.

    Folding batch norms alone is no gain of a shallower network, so ratios are against the dense
    network folded.

    Attributes:
        batch: batch size of all latencies.
        runtime: where the four that follow were measured, the one that decided.
        dense_ms: median of the dense network, in milliseconds.
        dense_folded_ms: with its batch norms folded.
        result_ms: of the result as it was trained.
        result_merged_ms: merged.
        speedup: dense folded over merged: `median`, `low` and `high` of its 95 % interval.
        runtimes: the same networks in each runtime, as `SideBySide.to_dict` has it.
        merge_max_rel_error: what merging changed, relative.
        merged_depth: depth of the merged result.
        merged_macs: its multiply-accumulates.
        merged_params: its parameter elements.
    """

    batch: int
    runtime: str
    dense_ms: float
    dense_folded_ms: float
    result_ms: float
    result_merged_ms: float
    speedup: Mapping[str, Any]
    runtimes: tuple[Mapping[str, Any], ...]
    merge_max_rel_error: float
    merged_depth: int
    merged_macs: int
    merged_params: int

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**asdict(self), "runtimes": [dict(one) for one in self.runtimes]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatencyReport:
        """Read what `to_dict` wrote; raises `RunError` if something is missing."""
        try:
            values = {f.name: data[f.name] for f in fields(cls)}
        except KeyError as error:
            raise RunError(f"the latencies of the result have no {error}") from None
        return cls(**{**values, "runtimes": tuple(values["runtimes"])})


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a search found, without its networks: all that `result.json` holds.

    Attributes:
        dense: figures of the dense network.
        final: figures of the result as it was trained.
        steps: all steps, the dense network (0) first.
        removed: how many rectifiers, or blocks, are gone in the result.
        total: how many there were that could have gone.
        unit: of these two: "rectifiers", "blocks", or what else the method counts.
        stopped: why the search ended.
        latency: of dense and result, as they are and merged.
        merge: what was merged, and what was kept and why.
        notes: what the user should know.
        energy: what the meter measured (`Meter.summary`); empty without one.
    """

    dense: Metrics
    final: Metrics
    steps: tuple[Step, ...]
    removed: int
    total: int
    unit: str
    stopped: str
    latency: LatencyReport
    merge: MergeReport
    notes: tuple[str, ...] = ()
    energy: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values; `from_dict` is the way back."""
        record = {
            "format": FORMAT,
            "dense": self.dense.to_dict(),
            "final": self.final.to_dict(),
            "steps": [step.to_dict() for step in self.steps],
            "removed": self.removed,
            "total": self.total,
            "unit": self.unit,
            "stopped": self.stopped,
            "latency": self.latency.to_dict(),
            "merge": self.merge.to_dict(),
            "notes": list(self.notes),
        }
        return record | ({"energy": dict(self.energy)} if self.energy else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunRecord:
        """Read what `to_dict` wrote, of this format or an older one.

        Raises:
            RunError: something is missing, or a newer version of shoal wrote it.
        """
        if data.get("format", 1) > FORMAT:
            raise RunError(
                f"the result has format {data['format']} and this version of shoal reads up to "
                f"{FORMAT}: update shoal"
            )
        try:
            return cls(
                dense=Metrics.from_dict(data["dense"]),
                final=Metrics.from_dict(data["final"]),
                steps=tuple(Step.from_dict(step) for step in data["steps"]),
                removed=data["removed"],
                total=data["total"],
                unit=data["unit"],
                stopped=data["stopped"],
                latency=LatencyReport.from_dict(data["latency"]),
                merge=MergeReport.from_dict(data["merge"]),
                notes=tuple(data["notes"]),
                energy=dict(data.get("energy", {})),
            )
        except RunError:
            raise
        except (KeyError, TypeError, ValueError, ShoalError) as error:
            raise RunError(f"the result is damaged: it has no {error}") from error
