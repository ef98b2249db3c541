"""What a removal costs: the rise of the loss, or the accuracy lost."""

from __future__ import annotations

from typing import Any

from shoal.errors import OptionError
from shoal.options import one_of, option

__all__ = ["METRICS", "check_metric", "metric_option"]

METRICS = {"loss": "nats", "accuracy": "points"}
"""The metrics and their units."""


def metric_option() -> Any:
    """Return the option that chooses between them."""
    return option(
        "loss",
        "loss scores the rise of the mean cross-entropy in nats, accuracy the points of accuracy "
        "lost.",
        check=one_of(*METRICS),
    )


def check_metric(metric: str) -> None:
    """Raise `OptionError` unless `metric` is one of them."""
    if metric not in METRICS:
        raise OptionError("metric", metric, f"one of {', '.join(METRICS)}")
