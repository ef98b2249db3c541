"""What a run knows of each network it made: figures with their units, and how it came about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from shoal.errors import RunError

__all__ = ["Metrics", "Step", "chosen", "lineage"]


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
        operation: "dense", "linearize", "drop" or "collapse"; "fine-tune" for the last training of
            the result.
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
        ended: of the last training: why the search had ended.
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
            values = {name: data[name] for name in own if name != "ended"}
            values["ended"] = data.get("ended", "")  # older records have none
            if data.get("energy") is not None:
                values["energy"] = dict(data["energy"])
        except KeyError as error:
            raise RunError(f"a step's record has no {error}: the run's folder is damaged") from None
        values |= {"names": tuple(values["names"]), "notes": tuple(values["notes"])}
        values["scores"] = {n: math.inf if s is None else s for n, s in values["scores"].items()}
        return cls(metrics=metrics, **values)


def chosen(steps: Sequence[Step]) -> Step:
    """Return the step whose network is the result: the last that is accurate enough."""
    return max((step for step in steps if step.within), key=lambda step: step.step)


def lineage(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that made the result, in order.

    The last training begins with the last network that was accurate enough, and not with the last.
    """
    last = chosen(steps)
    if last.operation != "fine-tune":
        return [step for step in steps if step.step <= last.step]
    return [*lineage([step for step in steps if step.step < last.step]), last]
