"""What a criterion says of each place, and the same for each millisecond that a removal saves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.errors import ConfigError, TrainingError

__all__ = ["Scores", "per_latency"]


@dataclass(frozen=True, eq=False)  # equal to any mapping with the same items
class Scores(Mapping[str, float]):
    """Scores by the name of the site or block; the lowest goes first.

    Attributes:
        criterion: the name of the criterion.
        by_name: the scores, in the order of the forward pass.
        samples: the number of samples they were computed from.
        standard_errors: of each score as an estimate of the score on all data; 0 where all data
            was used, empty where the criterion gives none.
        settled: whether the lowest score is below the second by more than twice the standard
            error of their difference; None where the criterion gives no standard errors.
        details: more about each site or block, as JSON values.
        unit: of the scores ("bits", "nats", "points"); empty for plain numbers.

    Raises:
        TrainingError: a score is NaN.

    Example:
        >>> import shoal
        >>> scores = shoal.Scores("entropy", {"relu": 0.9, "relu_1": 0.1}, samples=100, unit="bits")
        >>> scores.lowest(1), scores["relu"], scores.title
        (['relu_1'], 0.9, 'entropy, bits')
    """

    criterion: str
    by_name: Mapping[str, float]
    samples: int
    standard_errors: Mapping[str, float] = field(default_factory=dict)
    settled: bool | None = None
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unit: str = ""

    def __post_init__(self) -> None:
        """Refuse NaN: it is neither low nor high, so the order would follow from chance."""
        for name, value in self.by_name.items():
            if math.isnan(value):
                raise TrainingError(
                    f"the {self.criterion} score of '{name}' is NaN: the network's weights or its "
                    "data are broken; check them before scoring"
                )

    @property
    def title(self) -> str:
        """The criterion and the unit of its scores, for the head of a table: "entropy, bits"."""
        return f"{self.criterion}, {self.unit}" if self.unit else self.criterion

    def __getitem__(self, name: str) -> float:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    def lowest(self, count: int = 1) -> list[str]:
        """Return the `count` names with the lowest scores, lowest first; ties by forward order."""
        if count < 1:
            raise ConfigError(f"cannot pick {count} names: give at least 1")
        return sorted(self.by_name, key=self.by_name.__getitem__)[:count]

    def worth_removing(self) -> list[str]:
        """Return all names, lowest first, without the infinite: their removal saves no latency."""
        return [name for name in self.lowest(len(self) or 1) if math.isfinite(self[name])]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "criterion": self.criterion,
            "unit": self.unit,
            "samples": self.samples,
            "settled": self.settled,
            "values": dict(self.by_name),
            "standard_errors": dict(self.standard_errors),
            "details": {name: dict(detail) for name, detail in self.details.items()},
        }


def per_latency(scores: Scores, saved_ms: Mapping[str, float]) -> Scores:
    """Divide each score by the measured latency that the removal saves (Practise, CVPR 2023).

    A negative score, of a removal that does good, is multiplied instead: the more it saves, the
    earlier it goes. What saves nothing goes last: its score is infinite.

    Args:
        scores: of any criterion.
        saved_ms: by name, as `shoal.surgery.block_costs.block_costs` measures it.

    Raises:
        ConfigError: a scored name has no measured latency.
    """
    missing = [name for name in scores if name not in saved_ms]
    if missing:
        raise ConfigError(
            f"the latency that '{missing[0]}' saves was not measured: measure all that is scored"
        )
    values = {name: _weighted(score, saved_ms[name]) for name, score in scores.items()}
    errors = {
        name: error * abs(values[name] / scores[name])
        for name, error in scores.standard_errors.items()
        if scores[name] != 0 and math.isfinite(values[name])
    }
    details = {n: {**scores.details.get(n, {}), "saved_ms": saved_ms[n]} for n in scores}
    return replace(
        scores, by_name=values, standard_errors=errors, settled=None, details=details,
        unit=f"{scores.unit} per ms".strip(),
    )  # fmt: skip


def _weighted(score: float, saved: float) -> float:
    if saved <= 0:
        return math.inf
    return score / saved if score >= 0 else score * saved
