"""Quartiles, intervals and ratios of pairs."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ConfigError
from shoal.measure import Ratio
from shoal.measure.rounds import median_interval, quartiles

positive = st.floats(0.1, 10.0)


def test_quartiles_of_a_known_row() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("n", "low", "high", "certainty"),
    # Tables of the sign test: order statistics that enclose the median with 95 % certainty.
    [(6, 1, 6, 0.96875), (10, 2, 9, 0.97852), (20, 6, 15, 0.95861), (25, 8, 18, 0.95671)],
)
def test_interval_of_the_median_is_the_sign_test(
    n: int, low: int, high: int, certainty: float
) -> None:
    found = median_interval(list(range(1, n + 1)))
    assert found[:2] == (low, high)
    assert found[2] == pytest.approx(certainty, abs=1e-5)


@pytest.mark.parametrize("n", [6, 7, 11, 16, 33, 100])
def test_the_interval_is_scipys(n: int) -> None:
    from scipy.stats import quantile_test

    values = [float(7 * i % n) for i in range(n)]
    interval = quantile_test(values, p=0.5).confidence_interval(0.95)
    assert median_interval(values)[:2] == (interval.low, interval.high)


def test_few_values_promise_little() -> None:
    assert median_interval([1.0, 2.0, 3.0]) == (1.0, 3.0, 0.75)
    assert not Ratio.of([2.0] * 3, [1.0] * 3).settled
    assert Ratio.of([2.0] * 6, [1.0] * 6).settled


@given(st.lists(positive, min_size=1, max_size=30), positive)
def test_a_drift_common_to_both_cancels(drift: list[float], factor: float) -> None:
    ratio = Ratio.of([factor * d for d in drift], drift)
    for value in (ratio.median, ratio.q1, ratio.q3, ratio.low, ratio.high):
        assert value == pytest.approx(factor)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=30))
def test_the_parts_of_a_ratio_are_ordered(pairs: list[tuple[float, float]]) -> None:
    ratio = Ratio.of([a for a, _ in pairs], [b for _, b in pairs])
    assert ratio.q1 <= ratio.median <= ratio.q3
    assert ratio.low <= ratio.high
    assert ratio.pairs == len(pairs)


def test_pairs_need_partners() -> None:
    with pytest.raises(ConfigError, match="equally many rounds, not 2 and 3"):
        Ratio.of([1.0, 2.0], [1.0, 2.0, 3.0])


def test_a_ratio_is_plain_data() -> None:
    ratio = Ratio.of([3.0, 3.0], [2.0, 2.0])
    assert json.loads(json.dumps(ratio.to_dict()))["median"] == 1.5
    assert str(ratio) == "1.50 × (1.50 to 1.50)"
