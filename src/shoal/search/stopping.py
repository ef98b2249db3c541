"""When a search ends: the accuracy, a target, or the number asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from shoal.search.options import SearchOptions
from shoal.search.records import Step

__all__ = ["why_stop"]


def why_stop(options: SearchOptions, steps: Sequence[Step], *, removed: int) -> str:
    """Return why a search must end after its last step, or an empty string.

    Args:
        options: of the search.
        steps: all that were finished, the dense network first.
        removed: how many are gone after the last one, as the method counts.
    """
    dense, last = steps[0], steps[-1]
    failed = sum(1 for _ in takewhile(lambda step: not step.within, reversed(steps)))
    if failed > options.patience:
        drop = dense.metrics.top1_val - last.metrics.top1_val
        return (
            f"validation accuracy is {drop:.2f} points below dense, at most "
            f"{options.max_drop:g} allowed"
        )
    if options.remove is not None and removed >= options.remove:
        return f"removed {options.remove}, as asked"
    return _target_reached(options, dense, last) if last.within else ""


def _target_reached(options: SearchOptions, dense: Step, last: Step) -> str:
    """Return which target the last step has reached, or an empty string."""
    macs = last.metrics.macs / max(1, dense.metrics.macs)
    for what, share, wanted in (
        ("latency", 1.0 / last.latency_ratio, options.target_latency),
        ("the number of MACs", macs, options.target_macs),
    ):
        if wanted is not None and share <= wanted:
            return f"{what} is {share:.2f} of dense's, {wanted:g} was the target"
    return ""
