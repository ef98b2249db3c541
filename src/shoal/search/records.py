"""What a run knows: the figures of each network it made, and the record of the whole search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from shoal.display import Shown
from shoal.errors import DamagedError, RunError, ShoalError
from shoal.merge.report import MergeReport
from shoal.network import Network, Plan
from shoal.schema import Amount, Count, Finite, conform
from shoal.search.figures import TOP1, quality_key
from shoal.search.layers import Layer, RegionTime
from shoal.search.record import Record, plain

FORMAT = 2
"""Of `result.json`."""


@dataclass(frozen=True)
class Metrics(Record):
    """The figures of one network.

    Attributes:
        top1_val: the task's quality on the validation data, in points: of a classifier, top-1 in
            percent. All choices follow from it. In JSON it also stands under its own name
            (`miou_val`), where it has another.
        top1_test: that on the test data; reported only. None without test data.
        macs: multiply-accumulates of one sample.
        params: number of parameter elements.
        depth: layers with weights on the longest path.
        latency_ms: median ms of one call, in the first runtime and at the first batch size.
        quality_name: what the quality is called ("mIoU").
        quality_unit: its unit ("%").
        relus: rectifier evaluations of one sample; None in old records.
    """

    top1_val: Finite
    top1_test: Finite | None
    macs: Count
    params: Count
    depth: Count
    latency_ms: Amount
    quality_name: str = TOP1
    quality_unit: str = "%"
    relus: Count | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values, the quality under its own name too."""
        values = super().to_dict()
        if self.quality_name == TOP1:
            return {k: v for k, v in values.items() if not k.startswith("quality_")}
        key = quality_key(self.quality_name)
        return values | {f"{key}_val": self.top1_val, f"{key}_test": self.top1_test}


@dataclass(frozen=True)
class Step(Record):
    """One removal with the fine-tuning after it.

    Attributes:
        step: its number, from 1; 0 is the dense network.
        operation: "linearize", "drop", "collapse", "replace", a word of the method's own, or
            several with "+" between them; "dense" for step 0, "fine-tune" where nothing changed.
        metrics: the figures after fine-tuning.
        sites_left: sites that have their rectifier.
        epochs: epochs of fine-tuning.
        seconds: time of the whole step.
        latency_ratio: dense latency over this network's, from the same rounds; above 1 is faster.
        latency_ratio_low: lower end of its 95 % interval; no difference if 1 lies within.
        latency_ratio_high: its upper end.
        latency_doubt: why the ratio is not to be trusted; empty where it is.
        within: whether the accuracy is within the allowed drop from dense and, after the last
            training, not below what it was before.
        names: the sites, blocks or stretches it was done to.
        scores: the criterion's, of all candidates before the removal; infinite, and null in JSON,
            where importance is divided by latency and the removal saves none.
        settled: whether the lowest scores were certain; None where not known.
        top1_val_before: quality on the validation data after the removal and before fine-tuning.
        notes: what else happened.
        energy: of its training, as JSON values of the search's meter; None without one.
        ended: after the last training: why the search had ended.
        begun_from: the number of the step whose network this one was made of.
        epoch_seconds: time of an epoch of its training; None without one.
        removed: how many are gone in the network, as the method counts.
        total: how many there were.
        unit: what is counted.
    """

    step: Count
    operation: str
    metrics: Metrics
    sites_left: Count
    epochs: Count
    seconds: Amount
    latency_ratio: Amount
    latency_ratio_low: Amount
    latency_ratio_high: Amount
    within: bool
    names: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    settled: bool | None = None
    top1_val_before: Finite | None = None
    notes: tuple[str, ...] = ()
    energy: Mapping[str, Any] | None = None
    ended: str = ""
    begun_from: Count | None = None
    epoch_seconds: Amount | None = None
    removed: Count = 0
    total: Count | None = None
    unit: str = ""
    latency_doubt: str = ""

    @property
    def faster(self) -> bool | None:
        """Whether it is faster than dense, merged; None where that is not certain."""
        low, high = self.latency_ratio_low, self.latency_ratio_high
        return None if self.latency_doubt or low <= 1.0 <= high else low > 1.0

    @property
    def shortfall(self) -> str:
        """What the step lacks to be the result: "too low", or "not better" than it was before."""
        if self.within:
            return ""
        before = self.top1_val_before
        worse = before is None or self.metrics.top1_val < before
        return "not better" if self.operation == "fine-tune" and worse else "too low"

    def to_dict(self) -> dict[str, Any]:
        """Return the step as flat JSON values: its own fields, and the metrics' beside them."""
        own = super().to_dict()
        # JSON has no infinity, which stands for a removal that saves nothing.
        own["scores"] = {n: s if math.isfinite(s) else None for n, s in self.scores.items()}
        if self.energy is None:
            del own["energy"]
        metrics: dict[str, Any] = own.pop("metrics")
        return own | metrics

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote; raises `RunError` if something is missing."""
        try:
            given = conform(dict[str, Finite | None], data.get("scores", {}))
        except DamagedError as error:
            raise RunError(f"a record of the run is damaged: scores: {error}") from error
        scores = {name: math.inf if score is None else score for name, score in given.items()}
        return super().from_dict({**data, "metrics": Metrics.from_dict(data), "scores": scores})


def chosen(steps: Sequence[Step]) -> Step:
    """Return the step whose network is the result: the last that is good enough."""
    return max((step for step in steps if step.within), key=lambda step: step.step)


def lineage(steps: Sequence[Step], last: Step | None = None) -> list[Step]:
    """Return the steps that made the network of one of them, by default the result, in order."""
    by_number = {step.step: step for step in steps}
    last = last or chosen(steps)
    line = [last]
    while last.step > 0:
        last = by_number[last.step - 1 if last.begun_from is None else last.begun_from]
        line.append(last)
    return line[::-1]


@dataclass(frozen=True)
class LatencyReport(Record):
    """Dense and result as they are and merged, timed in the same rounds at the end of a search.

    Folding batch norms alone is no gain of a shallower network, so ratios are against the dense
    network folded.

    Attributes:
        batch: batch size of all latencies.
        runtime: where the four that follow were measured, the one that decided.
        dense_ms: median of the dense network, in milliseconds.
        dense_folded_ms: with its batch norms folded.
        result_ms: of the result as it was trained.
        result_merged_ms: merged.
        speedup: dense folded over merged: `median`, `low` and `high` of its 95 % interval, and
            whether it is `trusted`.
        runtimes: latencies in each runtime at each batch size, as `SideBySide.to_dict` has it, of
            these networks (where it decided) or of dense folded and result merged, with both in
            int8 where they were quantized; and "decides", whether the search decided there. Read it
            by `measured`.
        merge_max_rel_error: what merging changed, relative.
        merged_depth: depth of the merged result.
        merged_macs: its multiply-accumulates.
        merged_params: its parameter elements.
        dense_folded_params: those of the dense network with its batch norms folded; None in a
            record of an earlier version.
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
    dense_folded_params: int | None = None

    @property
    def measured(self) -> list[dict[str, Any]]:
        """The entries of `runtimes`; those of old records, too, with "batch" and "decides"."""
        return [
            {"batch": self.batch, "decides": one["runtime"] == self.runtime, **one}
            for one in self.runtimes
        ]


@dataclass(frozen=True, kw_only=True)
class Int8(Record):
    """The result of a search in int8, merged, as one runtime quantized and ran it.

    Attributes:
        runtime: its name.
        file: the name of its file in the run's folder `int8`.
        bytes: the size of what was written.
        samples: the training samples it was calibrated on.
        agreement: percent of these samples' answers that are the float network's; None if it gives
            no such answers.
        top1_val: the task's quality on the validation data, in points.
        top1_test: on the test data; None without them.
    """

    runtime: str
    file: str
    bytes: int
    samples: int
    agreement: float | None
    top1_val: float
    top1_test: float | None


@dataclass(frozen=True, kw_only=True, repr=False)
class RunRecord(Record, Shown):
    """What a search found, without its networks: all that `result.json` holds.

    Attributes:
        dense: figures of the dense network.
        final: figures of the result as it was trained; before the end, of the best so far.
        steps: all steps, the dense network (0) first.
        removed: how many rectifiers, or blocks, are gone in the result.
        total: how many there were that could have gone; None where that is not known yet.
        unit: of these two: "rectifiers", "blocks", or what else the method counts.
        stopped: why the search ended; empty while it has not.
        budget: the share of all epochs that was trained (`SearchOptions.budget`).
        latency: of dense and result, as they are and merged; None before the end.
        merge: what was merged, and what was kept and why; None before the end.
        notes: what the user should know.
        energy: what the meter measured (`Meter.summary`); empty without one.
        int8: the result in int8, for each runtime that could quantize it; None if not asked for.
        folder: the run's; None where nothing was kept.
        latency_batch: the batch sizes at which latency was measured; None if not known.
        machine: where, when and with which versions the end was measured (`machine_facts`); empty
            before the end, and in old records.
        layers: of the dense network, each with what became of it; empty where that is not known.
        merged_layers: of the result, merged.
        regions: the time in each part of both networks.
    """

    dense: Metrics
    final: Metrics
    steps: tuple[Step, ...]
    removed: int
    total: int | None
    unit: str
    stopped: str = ""
    budget: float = 1.0
    latency: LatencyReport | None = None
    merge: MergeReport | None = None
    notes: tuple[str, ...] = ()
    energy: Mapping[str, Any] = field(default_factory=dict)
    int8: tuple[Int8, ...] | None = None
    folder: Path | None = None
    latency_batch: tuple[int, ...] | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    merged_layers: tuple[Layer, ...] = ()
    regions: tuple[RegionTime, ...] = ()

    shown_by: ClassVar[str] = "shoal.report.notebook:result_html"

    def __repr__(self) -> str:
        """Return the outcome in one line."""
        dense, final = self.dense, self.final
        named = "" if dense.quality_name == TOP1 else f" {dense.quality_name}"
        total = "" if self.total is None else f" of {self.total}"
        text = (
            f"{self.removed}{total} {self.unit} removed; validation{named} "
            f"{dense.top1_val:.2f} → {final.top1_val:.2f} {dense.quality_unit}".rstrip()
        )
        if self.latency is None:
            return f"<shoal result, not finished: {text}>"
        gain = self.latency.speedup
        doubt = "" if gain.get("trusted", True) else ", not to be trusted"
        return (
            f"<shoal result: {text}; merged, depth {dense.depth} → {self.latency.merged_depth} and "
            f"{gain['median']:.2f} × ({gain['low']:.2f} to {gain['high']:.2f}) as fast{doubt}>"
        )

    @property
    def finished(self) -> bool:
        """Whether the search has come to its end."""
        return bool(self.stopped)

    @property
    def chosen(self) -> Step:
        """The step whose network is the result."""
        return chosen(self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values; `from_dict` is the way back."""
        names = [f.name for f in fields(RunRecord) if f.name not in ("folder", "latency_batch")]
        values = {"format": FORMAT, **{name: plain(getattr(self, name)) for name in names}}
        values["latency"] = values["latency"] or {}
        left_out = {"merge", "energy", "machine", "layers", "merged_layers", "regions"}
        left_out |= {"int8"} if self.int8 is None else set()
        return {k: v for k, v in values.items() if v or k not in left_out}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote, of this format or an older one.

        Raises:
            RunError: something is missing, or a newer version of shoal wrote it.
        """
        if data.get("format", 1) not in range(1, FORMAT + 1):
            raise RunError(
                f"the result has format {data['format']} and this version of shoal reads up to "
                f"{FORMAT}: update shoal"
            )
        try:
            parts = {name: kind.from_dict(data[name]) for name, kind in _PARTS.items()}
            for name, kind in _LISTS.items():
                if data.get(name) is not None:
                    parts[name] = tuple(map(kind.from_dict, data[name]))
            decided = [one["batch"] for one in parts["latency"].measured if one["decides"]]
            sizes = tuple(dict.fromkeys([parts["latency"].batch, *decided]))
            return super().from_dict({**data, **parts, "latency_batch": sizes})
        except (KeyError, TypeError, ValueError, AttributeError, ShoalError) as error:
            raise RunError(f"the result is damaged ({error})") from error


_PARTS: dict[str, Any] = {
    "dense": Metrics,
    "final": Metrics,
    "latency": LatencyReport,
    "merge": MergeReport,
}
_LISTS: dict[str, Any] = {
    "steps": Step,
    "int8": Int8,
    "layers": Layer,
    "merged_layers": Layer,
    "regions": RegionTime,
}


@dataclass(frozen=True, kw_only=True, repr=False)
class Result(RunRecord):
    """What a search found.

    Attributes:
        model: the last network whose quality is within the allowed drop, in eval mode; it can be
            trained on.
        merged: the same, merged: what to use and to export.

    Example:
        >>> import shoal, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> batches = [(torch.randn(8, 4), torch.arange(8) % 3)]
        >>> result = shoal.compress(model, batches, batches, "easier", max_drop=100.0, epochs=0)
        >>> result.removed, result.total, result.plan.names("linearize")
        (1, 1, ['1'])
        >>> torch.allclose(result.merged(batches[0][0]), result.model(batches[0][0]), atol=1e-5)
        True
    """

    model: Network
    merged: Network
    latency: LatencyReport
    merge: MergeReport

    @property
    def plan(self) -> Plan:
        """The operations that made `model` out of the original."""
        return self.model.plan
