"""The networks of a run that are worth having: none is both more accurate and faster."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.search.records import Step


def front(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that no other one equals or beats in both accuracy and latency, in order.

    Accuracy is that on validation data, latency as measured against dense, merged. Of steps that
    are equal in both, the last one stays. One whose latency is not to be trusted (`latency_doubt`)
    beats none whose latency is: a machine that was busy once hides no network.
    """
    return [step for step in steps if not any(_beats(other, step) for other in steps)]


def _beats(one: Step, other: Step) -> bool:
    if one.latency_doubt and not other.latency_doubt:
        return False
    ahead = (
        one.metrics.top1_val - other.metrics.top1_val,
        one.latency_ratio - other.latency_ratio,
    )
    if ahead == (0.0, 0.0) and bool(one.latency_doubt) == bool(other.latency_doubt):
        return one.step > other.step
    return min(ahead) >= 0.0
