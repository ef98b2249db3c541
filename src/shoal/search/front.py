"""The networks of a run that are worth having: none is both more accurate and faster."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.search.records import Step


def front(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that no other one equals or beats in both accuracy and latency, in order.

    Accuracy is that on validation data, latency as measured against dense, merged. Of steps that
    are equal in both, the last one stays.
    """
    found: list[Step] = []
    # From the fastest on, each must be more accurate than all before it.
    for step in sorted(steps, key=_speed_first, reverse=True):
        if not found or step.metrics.top1_val > found[-1].metrics.top1_val:
            found.append(step)
    return sorted(found, key=lambda step: step.step)


def _speed_first(step: Step) -> tuple[float, float, int]:
    return step.latency_ratio, step.metrics.top1_val, step.step
