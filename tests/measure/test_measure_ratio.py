"""Blocks of rounds, ratios of pairs, and intervals that hold what they promise."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import exp, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ConfigError
from shoal.measure import Ratio
from shoal.measure.ratio import PLACEMENT, block_times, quartiles, typical, unsteady

positive = st.floats(0.1, 10.0)


def test_quartiles_of_a_known_row() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)


# ---------------------------------------------------------------------- blocks


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=40))
def test_blocks_of_two_calls_have_the_median_of_their_pairs(
    pairs: list[tuple[float, float]],
) -> None:
    above, below = block_times([[a for a, _ in pairs], [b for _, b in pairs]])
    logs = np.array_split([log(a / b) for a, b in pairs], min(5, len(pairs)))
    assert len(above) == len(below) == len(logs)
    for a, b, block in zip(above, below, logs, strict=True):
        assert a / b == pytest.approx(exp(np.median(block)))


def test_blocks_without_noise_are_the_times() -> None:
    assert block_times([[2.0] * 20, [3.0] * 20, [5.0] * 20]) == [
        pytest.approx((time,) * 5) for time in (2.0, 3.0, 5.0)
    ]


def test_typical_is_the_geometric_mean() -> None:
    assert typical([1.0, 4.0]) == pytest.approx(2.0)


def test_a_burst_in_one_block_is_seen() -> None:
    calm = [1.0] * 16
    (blocks,) = block_times([[*calm, 1.3, 1.3, 1.3, 1.3]])
    assert unsteady(blocks) == "the machine was not steady: blocks of rounds differ by 30 %"
    (blocks,) = block_times([[*calm, 1.0, 1.0, 1.0, 9.0]])  # one round is none
    assert unsteady(blocks) == ""
    assert "differ by 100 %" in unsteady([1.0, 1.0, 0.5, 1.0, 1.0])


# ---------------------------------------------------------------------- ratios


def test_the_interval_is_students_with_that_of_the_place_in_memory() -> None:
    from scipy.stats import t

    for count in range(2, 6):
        blocks = [1.0 + 0.01 * (i * i % 7) for i in range(count)]
        logs = np.log(blocks)
        own = t.ppf(0.975, count - 1) * logs.std(ddof=1) / sqrt(count)
        reach = sqrt(own**2 + PLACEMENT**2)
        ratio = Ratio.of(blocks, [1.0] * count)  # each round is a block
        assert log(ratio.low) == pytest.approx(logs.mean() - reach, abs=1e-5)
        assert log(ratio.high) == pytest.approx(logs.mean() + reach, abs=1e-5)
        assert ratio.confidence == 0.95


def test_one_round_promises_nothing() -> None:
    ratio = Ratio.of([2.0], [1.0])
    assert (ratio.low, ratio.median, ratio.high, ratio.confidence) == (2.0, 2.0, 2.0, 0.0)
    assert not ratio.settled
    assert Ratio.of([2.0, 2.0], [1.0, 1.0]).settled


@given(st.lists(positive, min_size=1, max_size=30), positive)
def test_a_drift_common_to_both_cancels(drift: list[float], factor: float) -> None:
    ratio = Ratio.of([factor * d for d in drift], drift)
    for value in (ratio.median, ratio.q1, ratio.q3):
        assert value == pytest.approx(factor)
    place = exp(PLACEMENT) if len(drift) > 1 else 1.0  # in memory: no drift, and not in the rounds
    assert (ratio.low, ratio.high) == pytest.approx((factor / place, factor * place))
    assert ratio.trusted


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=30))
def test_the_parts_of_a_ratio_are_ordered(pairs: list[tuple[float, float]]) -> None:
    ratio = Ratio.of([a for a, _ in pairs], [b for _, b in pairs])
    assert ratio.q1 <= ratio.median <= ratio.q3
    assert ratio.low <= ratio.median <= ratio.high
    assert ratio.pairs == len(pairs)


def test_what_disturbed_one_of_a_pair_is_told() -> None:
    burst = [2.0] * 16 + [3.0] * 4
    ratio = Ratio.of(burst, [1.0] * 20)
    assert not ratio.trusted
    assert not ratio.settled
    assert ratio.doubt == "the machine was not steady: blocks of rounds differ by 50 %"
    assert ratio.low < 2.0 < ratio.high
    assert str(ratio).endswith("not to be trusted")
    busy = Ratio.of([2.0] * 20, [1.0] * 20, "the machine was busy")
    assert (busy.trusted, busy.doubt) == (False, "the machine was busy")


def test_pairs_need_partners() -> None:
    with pytest.raises(ConfigError, match="equally many rounds, not 2 and 3"):
        Ratio.of([1.0, 2.0], [1.0, 2.0, 3.0])


def test_a_ratio_is_plain_data() -> None:
    ratio = Ratio.of([3.0, 3.0], [2.0, 2.0])
    values = json.loads(json.dumps(ratio.to_dict()))
    assert (values["median"], values["trusted"], values["doubt"]) == (1.5, True, "")
    assert str(ratio) == "1.50 × (1.49 to 1.52)"


# ---------------------------------------------------------------------- what intervals hold

Noise = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def alone(rng: np.random.Generator, n: int) -> np.ndarray:
    """Times around 1 with a heavy tail, as a calm machine gives them."""
    spikes = np.where(rng.random(n) < 0.1, rng.exponential(0.3, n), 0.0)
    return rng.lognormal(0.0, 0.02, n) * (1.0 + spikes)


def independent(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    return alone(rng, n), alone(rng, n)


def lasting(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Each is slow for a few rounds, then fast again: autoregressive, 0.5 from round to round."""
    noise = rng.normal(0.0, 0.04 * sqrt(0.75), (2, n + 20))
    for i in range(1, n + 20):
        noise[:, i] += 0.5 * noise[:, i - 1]
    one, other = np.exp(noise[:, 20:])
    return one * alone(rng, n), other * alone(rng, n)


def bursts(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A fifth of the rounds, ten in a row or so, are slowed, each call by a share of its own."""
    on, busy = np.zeros(n, bool), rng.random() < 0.2
    for i in range(n):
        busy = rng.random() > (0.1 if busy else 0.975)
        on[i] = busy
    return tuple(alone(rng, n) * np.where(on, 1 + rng.exponential(0.5, n), 1) for _ in range(2))


def drift(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The machine becomes slower all the time, by a factor of 7 in all."""
    slower = np.exp(np.linspace(-1, 1, n))
    return alone(rng, n) * slower, alone(rng, n) * slower


def two_clocks(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The clock of the machine switches between two frequencies every 20 rounds or so."""
    state = 1 + np.cumsum(rng.random(n) < 0.05) % 2
    return alone(rng, n) * state, alone(rng, n) * state


def drifts_apart(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Each has a slow drift of its own."""
    along = np.linspace(-0.5, 0.5, n)
    return tuple(alone(rng, n) * np.exp(along * rng.normal(0.0, 0.1)) for _ in range(2))


@pytest.mark.parametrize("rounds", [20, 100])
@pytest.mark.parametrize("noise", [independent, lasting, bursts, drift, two_clocks, drifts_apart])
def test_intervals_cover_the_truth_at_the_rate_they_promise(noise: Noise, rounds: int) -> None:
    rng, truth, times = np.random.default_rng(7), 1.25, 300
    covered = 0
    for _ in range(times):
        above, below = noise(rng, rounds)
        ratio = Ratio.of(tuple(truth * above), tuple(below))
        covered += ratio.low <= truth <= ratio.high
    # 93 % at least, as noise that lasts has it at 20 rounds, less two standard errors of a count
    assert covered >= 0.93 * times - 2 * sqrt(times * 0.93 * 0.07)


def test_a_second_run_bears_the_interval_out() -> None:
    # Two independent estimates lie within √2 reaches of each other about as often.
    rng, borne_out = np.random.default_rng(3), 0
    for _ in range(200):
        first, second = (Ratio.of(*map(tuple, lasting(rng, 60))) for _ in range(2))
        reach = log(first.high / first.median)
        borne_out += abs(log(second.median / first.median)) <= sqrt(2) * reach
    assert borne_out >= 0.93 * 200
