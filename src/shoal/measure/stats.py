"""What timed rounds say: quartiles, ratios of pairs, and how certain the median is.

The interval is that of `scipy.stats.quantile_test`, which gives none below six values, does not say
what certainty it reaches, and takes a second to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import Any

import numpy as np

from shoal.errors import ConfigError

__all__ = ["Ratio", "median_interval", "quartiles"]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile, linearly interpolated."""
    low, middle, high = np.percentile(np.asarray(values, dtype=float), [25, 50, 75])
    return float(low), float(middle), float(high)


def median_interval(
    values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return the ends of an interval for the true median, and its certainty between 0 and 1.

    The sign-test interval: the k-th smallest and k-th largest value, whatever the distribution,
    with the largest k whose certainty is at least `confidence`. Fewer than six values cannot give
    95 %: then it is the whole range, with the certainty that it has.
    """
    ordered = sorted(values)
    n = len(ordered)
    k, certainty = 1, 1 - 2 * _tail(n, 0)
    while 2 * (k + 1) <= n and 1 - 2 * _tail(n, k) >= confidence:
        k, certainty = k + 1, 1 - 2 * _tail(n, k)
    return ordered[k - 1], ordered[n - k], max(0.0, certainty)


def _tail(n: int, k: int) -> float:
    """The chance of at most `k` heads in `n` throws of a fair coin."""
    return sum(comb(n, i) for i in range(k + 1)) / 2**n


@dataclass(frozen=True)
class Ratio:
    """The ratio of two quantities measured in pairs, one pair per round.

    A machine that slows down slows both of a pair, so the ratio of pairs holds where the ratio of
    two separately measured medians does not.

    Attributes:
        median: the median of the rounds' ratios.
        q1: their lower quartile.
        q3: their upper quartile.
        low: the lower end of an interval for the true median ratio.
        high: the upper end of that interval.
        confidence: of the interval, between 0 and 1 (at least 0.95 from six rounds on).
        pairs: the number of rounds.
    """

    median: float
    q1: float
    q3: float
    low: float
    high: float
    confidence: float
    pairs: int

    @classmethod
    def of(cls, numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
        """Return the ratio of round i of one to round i of the other.

        Raises:
            ConfigError: the two do not have the same number of rounds, or none.
        """
        if len(numerators) != len(denominators) or not numerators:
            raise ConfigError(
                f"a ratio of pairs needs equally many rounds, not {len(numerators)} and "
                f"{len(denominators)}: measure both in the same call"
            )
        ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
        q1, median, q3 = quartiles(ratios)
        low, high, certainty = median_interval(ratios)
        return cls(median, q1, q3, low, high, certainty, len(ratios))

    @property
    def settled(self) -> bool:
        """Whether the interval, at 95 % or more, leaves no doubt which of the two is larger."""
        return self.confidence >= 0.95 and not self.low <= 1.0 <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.median:.2f} × ({self.q1:.2f} to {self.q3:.2f})"
