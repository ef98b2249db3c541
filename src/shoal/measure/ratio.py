"""What interleaved rounds say: blocks of rounds, ratios, and intervals that the next run bears out.

Rounds that follow one another are not independent: a machine is slow for a while, then fast again.
So they are put into five blocks, one after the other, and what certainty there is comes from how
far the blocks agree ("batch means": Schmeiser, Batch size effects in the analysis of simulation
output, Operations Research 1982): Student's t over the blocks' log ratios. Of what was simulated
(sign test over rounds; bootstrap of blocks; sign test and t over 4 to 12 blocks) this one holds its
95 % (93 to 99) at 20 to 200 rounds with heavy tails, bursts, drift and noise that lasts for a
fraction of a block, and is hardly wider than the sign test where rounds are independent. The sign
test covers 50 % where noise lasts for ten rounds, a bootstrap of five to twelve blocks 80 to 90 %
anywhere. Noise that lasts for longer than a block cannot be told from the truth by any of them:
`Ratio.doubt` and the look at the machine (`shoal.measure.machine`) are there for that.

What rounds cannot show is where in memory a network happens to lie: two copies of one network
differ by about 1 % for as long as they live (benchmarks/results/clocks.md), and by something else
the next time. That much is added to each interval, as an error that is independent of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp, hypot, inf, log, sqrt
from operator import truediv
from typing import Any

import numpy as np

from shoal.errors import ConfigError

BLOCKS = 5
CONFIDENCE = 0.95
# Student's t at 97.5 %, by the degrees of freedom; scipy, which has it, takes a second to import.
_T = (inf, 12.706, 4.303, 3.182, 2.776)
PLACEMENT = 0.01  # the least half of an interval, as a share of the ratio
_APART = 1.10  # a block this many times above or below the middle one is no noise of a calm machine


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile, linearly interpolated."""
    low, middle, high = np.percentile(np.asarray(values, dtype=float), [25, 50, 75])
    return float(low), float(middle), float(high)


def block_times(rounds: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """Return the typical time of each call in each block, given its times in all rounds.

    A round slows all calls alike. In logarithms its mean over the calls is taken off; the medians
    over a block, of the round's mean and of what is left to each call, then make its time. So the
    quotient of two calls' times is, for two calls, the median of the pairs' ratios, and for more of
    them close to it, and holds while the machine drifts.
    """
    times = np.asarray(rounds, dtype=float)  # calls × rounds
    first = times[:, 0]  # what all is divided by, so that what is constant is so to the last digit
    logs = np.log(times / first[:, None])
    common = logs.mean(axis=0)
    blocks = np.array_split(np.arange(logs.shape[1]), min(BLOCKS, logs.shape[1]))
    own = logs - common
    typicals = [first * np.exp(np.median(own[:, b], axis=1) + np.median(common[b])) for b in blocks]
    return [tuple(map(float, call)) for call in np.stack(typicals, axis=1)]


def typical(blocks: Sequence[float]) -> float:
    """Return the geometric mean: of blocks' times, or of their ratios."""
    first = blocks[0]
    return first * exp(sum(log(block / first) for block in blocks) / len(blocks))


def unsteady(blocks: Sequence[float]) -> str:
    """Return, in words, how far blocks are from the middle one; "" where they agree."""
    middle = float(np.median(blocks))
    furthest = max(max(block / middle, middle / block) for block in blocks)
    if furthest <= _APART:
        return ""
    return f"the machine was not steady: blocks of rounds differ by {100 * (furthest - 1.0):.0f} %"


@dataclass(frozen=True)
class Ratio:
    """The ratio of two quantities measured in pairs, one pair per round.

    A machine that slows down slows both of a pair, so the ratio of pairs holds where the ratio of
    two separately measured medians does not. The interval says where the next run, and the truth,
    will be; a ratio with a `doubt` claims nothing.
    """

    median: float  # of a block's rounds, and of the blocks the geometric mean
    q1: float  # quartiles of the rounds' ratios
    q3: float
    low: float  # the ends of the 95 % interval, by Student's t over the blocks
    high: float
    confidence: float  # of the interval: 0.95, or 0 where there is but one round
    pairs: int  # the number of rounds
    doubt: str = ""  # why it is not to be trusted; "" where it is

    @classmethod
    def of(
        cls, numerators: Sequence[float], denominators: Sequence[float], doubt: str = ""
    ) -> Ratio:
        """Return the ratio of round i of one to round i of the other.

        `doubt` says what disturbed them. Raises `ConfigError` where there are no pairs.
        """
        if len(numerators) != len(denominators) or not numerators:
            raise ConfigError(
                f"a ratio of pairs needs equally many rounds, not {len(numerators)} and "
                f"{len(denominators)}: measure both in the same call"
            )
        above, below = block_times([numerators, denominators])
        blocks = list(map(truediv, above, below))
        return cls.of_blocks(blocks, list(map(truediv, numerators, denominators)), doubt)

    @classmethod
    def of_blocks(cls, blocks: Sequence[float], pairs: Sequence[float], doubt: str = "") -> Ratio:
        """Return the ratio of which blocks and rounds have these."""
        middle, count = typical(blocks), len(blocks)
        spread = float(np.std(np.log(blocks), ddof=1)) if count > 1 else 0.0
        own = _T[count - 1] * spread / sqrt(count) if count > 1 else 0.0
        reach = exp(hypot(own, PLACEMENT)) if count > 1 else 1.0
        q1, _, q3 = quartiles(pairs)
        return cls(
            middle, min(q1, middle), max(q3, middle), middle / reach, middle * reach,
            CONFIDENCE if count > 1 else 0.0, len(pairs), doubt or unsteady(blocks),
        )  # fmt: skip

    @property
    def trusted(self) -> bool:
        """Whether there is no doubt about how it was measured."""
        return not self.doubt

    @property
    def settled(self) -> bool:
        """Whether it is to be trusted and leaves no doubt which of the two is larger."""
        certain = self.trusted and self.confidence >= CONFIDENCE
        return certain and not self.low <= 1.0 <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {**asdict(self), "trusted": self.trusted}

    def __str__(self) -> str:
        text = f"{self.median:.2f} × ({self.low:.2f} to {self.high:.2f})"
        return text if self.trusted else f"{text}, not to be trusted"
